"""What a plan is made of: sections of integers, settled before any tensor exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from framepack.packing.notation import Kernel
from framepack.packing.schedule import Grid, context_tensor_tokens

# A tail of thousands of frames in a row is kept as a range, so that a plan stays linear in its sections.
Frames = tuple[int | None, ...] | range


@dataclass(frozen=True)
class Span:
    """Latent frames start .. stop - 1 of the timeline."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def frames(self) -> range:
        return range(self.start, self.stop)


@dataclass(frozen=True)
class ContextLevel:
    """Latent frames of the context that share one patchify kernel.

    role: ``tail``, ``history``, ``start`` or ``end``.
    frames: timeline latent indices in order of time; None is an absent frame, given as zeros.
    positions: time index of each frame, or a single one that all share; always single when ``mean``.
    pool: average pooling before the kernel (an appended tail).
    mean: all frames are averaged into one (a compressed tail), whose position is that of the frame nearest
        to the history levels.
    """

    role: str
    kernel: Kernel
    frames: Frames
    positions: tuple[int, ...] | range
    pool: Kernel | None = None
    mean: bool = False

    @property
    def present(self) -> list[int]:
        """The frames that exist."""
        return [frame for frame in self.frames if frame is not None]

    def tokens(self, grid: Grid) -> int:
        """Exact tokens on a latent grid (height, width), padding included."""
        count = min(1, len(self.frames)) if self.mean else len(self.frames)
        return context_tensor_tokens(count, grid, self.kernel, self.pool)

    def to_json(self) -> dict[str, object]:
        record: dict[str, object] = {
            "role": self.role,
            "kernel": list(self.kernel),
            "frames": _plain(self.frames),
            "positions": _plain(self.positions),
        }
        if self.pool is not None:
            record["pool"] = list(self.pool)
        if self.mean:
            record["mean"] = True
        return record


def _plain(indices: Frames) -> object:
    if isinstance(indices, range):
        return {"start": indices.start, "stop": indices.stop}
    return list(indices)


@dataclass(frozen=True)
class Section:
    """One denoising run: the latent frames it writes and the context it sees.

    index: place in the order of generation.
    spans: what it writes; two spans for a first and a last section made together.
    positions: time index of each target frame, spans concatenated.
    context: tail, then history far to near, then start, then end.
    past, future: per span, the nearest context frame just outside it on that side (timeline index), None
        where there is none: what aligned conditioning shows beside the targets.
    candidates: history frames a ranker may choose from, in order of time; empty when importance is time.
    """

    index: int
    spans: tuple[Span, ...]
    positions: tuple[int, ...]
    context: tuple[ContextLevel, ...]
    past: tuple[int | None, ...]
    future: tuple[int | None, ...]
    candidates: tuple[int, ...] = ()

    @property
    def frames(self) -> tuple[int, ...]:
        """All target latent indices, in order of time."""
        return tuple(frame for span in self.spans for frame in span.frames)

    @property
    def context_frames(self) -> tuple[int, ...]:
        """The timeline frames that must exist before this section is made, in order of time."""
        return tuple(sorted({frame for level in self.context for frame in level.present}))

    def far_first(self, tail: Sequence[int | None]) -> Sequence[int]:
        """Frames of a tail from its far end, the one that later sections keep, to the history levels.

        A tail lies on one side of the section, and no frame of it is absent.
        """
        frames: Sequence[int] = tail  # type: ignore[assignment]
        return frames if frames[0] < self.spans[0].start else frames[::-1]

    def tokens(self, grid: Grid, *roles: str) -> int:
        """Exact context tokens of the levels of ``roles`` (all levels by default)."""
        return sum(level.tokens(grid) for level in self.context if not roles or level.role in roles)

    def to_json(self) -> dict[str, object]:
        record: dict[str, object] = {
            "index": self.index,
            "frames": list(self.frames),
            "spans": [[span.start, span.stop] for span in self.spans],
            "positions": list(self.positions),
            "context": [level.to_json() for level in self.context],
            "past": list(self.past),
            "future": list(self.future),
        }
        if self.candidates:
            record["candidates"] = list(self.candidates)
        return record
