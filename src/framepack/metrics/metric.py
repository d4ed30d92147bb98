"""What a metric is: what it measures, in which unit and direction, whence it comes and what it needs.

Legend: N frames, H W pixels, K scores evenly spread over the video's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from framepack.errors import InputError, UnknownNameError
from framepack.metrics.drift import SHARE, end_count

Better = Literal["higher", "lower", "neither"]
Per = Literal["frame", "pair", "window"]
WINDOWS = 7
"""Windows of a video, each as long as the two ends that its drift compares: so the first and the last are
those ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A video to be scored, and what is known about it.

    Attributes:
        frames: uint8 (N, H, W, 3). fps: frames a second.
        prompt: what it was to show. start: uint8 (H, W, 3), the picture that it was to begin with.
        words: of the prompt by slot of the lexicon, only where it was to show the bundled model's world.
    """

    frames: NDArray[np.uint8]
    fps: float
    prompt: str | None = None
    start: NDArray[np.uint8] | None = None
    words: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        shape, kind = self.frames.shape, self.frames.dtype
        if len(shape) != 4 or shape[-1] != 3 or shape[0] < 2 or kind != np.uint8:
            raise InputError(
                f"frames of shape {shape} and type {kind}: give uint8 (frames, height, width, 3), 2 or more"
            )
        if not self.fps > 0:
            raise InputError(f"{self.fps:g} frames per second is not positive: give a rate such as 8 or 30")


Scorer = Callable[[Subject], NDArray[np.float64]]
"""Scores (K,) of a subject; not a number where there is nothing to score, such as a face."""


def _nothing_missing() -> None:
    return None


def _lacks_nothing(subject: Subject) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: of the table. title: for people. unit: of its scores. source: citation.
        better: which way is better; "neither" where it depends on what was asked for.
        per: what a score stands for: frames (all, or evenly spaced ones), pairs of frames, or the
            ``WINDOWS`` windows of a video.
        needs: what must be installed or put somewhere, for people.
        stands_for: which of the paper's seven it is.
        missing: why it cannot be computed on this machine and what to do about it, in one line, or None.
        get: download its weights; called only where it is asked for by name.
        lacks: why this subject has no such score, in one line, or None.
        load: its networks on a device, once; gives the scorer.
    """

    name: str
    title: str
    unit: str
    better: Better
    source: str
    load: Callable[[str], Scorer]
    per: Per = "frame"
    needs: str = "nothing"
    stands_for: str | None = None
    missing: Callable[[], str | None] = _nothing_missing
    get: Callable[[], None] = _nothing_missing
    lacks: Callable[[Subject], str | None] = _lacks_nothing


def windows(count: int) -> list[slice]:
    """``WINDOWS`` evenly spaced windows of ``count`` frames, of 15 % of them each, two at least."""
    length = max(2, end_count(count, SHARE))
    starts = np.linspace(0, count - length, WINDOWS).round().astype(int)
    return [slice(int(start), int(start) + length) for start in starts]


def choose(names: Sequence[str], table: Mapping[str, Metric]) -> list[Metric]:
    """The metrics of a list of names, in order of the table, each once.

    Args:
        names: of the table; "all": what can be computed here, "offline": of that, what needs no published
            weights.

    Raises:
        UnknownNameError: not in the table.
        InputError: asked for by its own name, and it cannot be computed here.
        ModelError: likewise, and its weights could not be downloaded.
    """
    wanted: set[str] = set()
    for name in names:
        if name in ("all", "offline"):
            among = (m for m in table.values() if name == "all" or m.stands_for is None)
            wanted |= {metric.name for metric in among if metric.missing() is None}
        elif name not in table:
            raise UnknownNameError("metric", name, ("all", "offline", *table))
        else:
            if table[name].missing() is not None:
                table[name].get()
            reason = table[name].missing()
            if reason is not None:
                raise InputError(f"metric '{name}' is unavailable: {reason}")
            wanted.add(name)
    return [metric for name, metric in table.items() if name in wanted]
