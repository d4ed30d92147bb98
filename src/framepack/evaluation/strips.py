"""Strips of frames: what the numbers mean. The best, the median and the worst clip of each row, and revisits.

A file that is missing or damaged is left out: strips show, they don't decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from framepack.errors import InputError
from framepack.evaluation.analysis import Measure, Measured
from framepack.evaluation.results import Revisit
from framepack.video.io import read_video
from framepack.video.sheet import spread

FRAMES = 8
"""Of a strip."""
WALKS = 3
"""Of a row: its best, median and worst revisit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strip:
    """Frames of one clip, in the order of time.

    Attributes:
        row: its name. what: which clip it is, and why it is shown.
        frames: uint8 (H, W, 3) each. labels: one for each.
    """

    row: str
    what: str
    frames: tuple[NDArray[np.uint8], ...]
    labels: tuple[str, ...]


def drift_measure(found: Measured, metric: str | None = None) -> Measure | None:
    """What clips are chosen by: drift, beyond the world's if there is that, of a metric or the first one."""
    drifts = found.of("beyond") or found.of("drift")
    return next((measure for measure in drifts if metric in (None, measure.metric)), None)


def row_strips(found: Measured, row: int, measure: Measure) -> Iterator[Strip]:
    """The clips of a row that drift least, at the median and most; fewer where there are fewer videos."""
    videos, names = _videos(found, row), _clips(found)
    if found.rows[row].reference:
        return
    numbers = [n for n, name in enumerate(names) if name in videos and np.isfinite(measure.samples[row, n])]
    numbers.sort(key=lambda n: measure.samples[row, n])
    for place, which in _chosen(numbers):
        told = f"{which}: {names[place]}, drift {measure.samples[row, place]:.3g}"
        yield from _strip(videos[names[place]], found.name(row), told)


def same_scene(found: Measured, measure: Measure) -> Iterator[Strip]:
    """One clip that most rows have, as each has it: at the median of drift of the row to compare with."""
    names, videos = _clips(found), [_videos(found, row) for row in range(len(found.rows))]
    held = [sum(name in of for of in videos) for name in names]
    if not held or not max(held):
        return
    most = [n for n, count in enumerate(held) if count == max(held)]
    if found.against is not None:
        drifts = np.nan_to_num(measure.samples[found.against])
        most.sort(key=lambda n: drifts[n])
    name = names[most[len(most) // 2]]
    for row, of in enumerate(videos):
        if name in of:
            yield from _strip(of[name], found.name(row), name)


def revisit_strips(found: Measured, row: int) -> Iterator[Strip]:
    """Walks of a row: the place before it is left, out of view, and back; and the same of the world's own."""
    walks = [
        walk for walk in found.rows[row].revisits if walk.video is not None and walk.at and len(walk.error)
    ]
    walks = [walk for walk in walks if np.isfinite(walk.error).all()]
    walks.sort(key=lambda walk: float(np.mean(walk.error)))
    if found.rows[row].reference:
        return
    for place, which in _chosen(range(len(walks))):
        walk = walks[place]
        assert walk.video is not None
        moments, labels = _moments(walk)
        told = f"{which}: {walk.clip}, mean error {np.mean(walk.error):.3g}"
        yield from _strip(walk.video, found.name(row), told, moments, labels)
        if walk.truth is not None and walk.truth != walk.video:
            yield from _strip(walk.truth, "the world's own", walk.clip, moments, labels)


def _moments(walk: Revisit) -> tuple[list[int], list[str]]:
    """Of the comparison from farthest away: frames by time, each with what is to be seen in it."""
    n = int(np.argmax(walk.away))
    back, left = walk.at[n], walk.at[n] - walk.away[n]
    return [left, left + walk.away[n] // 2, back], [
        f"{left + 1}: last in view",
        f"{left + walk.away[n] // 2 + 1}: out of view",
        f"{back + 1}: back after {walk.away[n]}",
    ]


def _chosen(ordered: Sequence[int]) -> list[tuple[int, str]]:
    """Best, median and worst of what is in order, each once."""
    if not ordered:
        return []
    last = len(ordered) - 1
    places = {0: "least", last // 2 if last > 1 else last: "median", last: "most"}
    if last == 0:
        places = {0: "only one"}
    return [(ordered[place], which) for place, which in sorted(places.items())]


def _clips(found: Measured) -> list[str]:
    """Names of clips, in the order of the columns of `Measure.samples`."""
    return list(dict.fromkeys(clip.clip for row in found.rows for clip in row.clips))


def _videos(found: Measured, row: int) -> dict[str, Path]:
    return {clip.clip: clip.video for clip in found.rows[row].clips if clip.video is not None}


def _strip(
    path: Path, row: str, what: str, moments: Sequence[int] = (), labels: Sequence[str] = ()
) -> Iterator[Strip]:
    """A strip of a file, at ``moments`` or evenly spread; nothing where the file cannot be read."""
    try:
        video = read_video(path)
        if moments:
            held = _frames_at(video.frames, set(moments))
            there = [(held[m], label) for m, label in zip(moments, labels, strict=True) if m in held]
        else:
            frames = list(video.frames)
            there = [(frames[n], f"{n + 1}") for n in spread(len(frames), FRAMES)]
    except InputError:
        return
    if there:
        yield Strip(
            row=row,
            what=what,
            frames=tuple(frame for frame, _ in there),
            labels=tuple(label for _, label in there),
        )


def _frames_at(frames: Iterator[NDArray[np.uint8]], moments: Collection[int]) -> dict[int, NDArray[np.uint8]]:
    held = {}
    for n, frame in enumerate(frames):
        if n in moments:
            held[n] = frame
        if n >= max(moments):
            break
    return held
