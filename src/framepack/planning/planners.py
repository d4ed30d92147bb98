"""The orders in which a timeline is filled, each a generator of `Section`s.

All orders cut the unknown latent frames into the same tiles: each unknown run from its beginning into
sections of S, the last of the run shortened. Known frames are never written; they are context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from framepack.errors import InputError
from framepack.packing.schedule import Grid, Kernel, Level
from framepack.planning.known import Known
from framepack.planning.layout import lay_out
from framepack.planning.method import Method
from framepack.planning.sections import Section, Span
from framepack.planning.timeline import Timeline

# Sections between two endpoints of a planned video, unless endpoints are given.
ENDPOINT_EVERY = 4


class _Filling:
    """A timeline being filled: makes sections in turn and remembers what is known after each."""

    def __init__(self, timeline: Timeline, method: Method) -> None:
        self.method, self.length = method, timeline.latent_frames
        self.known = Known(timeline.known)
        self.made = 0

    def make(self, *spans: Span, padding: int = 0) -> Section:
        section = lay_out(
            self.method, self.known, spans, index=self.made, length=self.length, padding=padding
        )
        for span in spans:
            self.known.add(span.start, span.stop)
        self.made += 1
        return section


def tile(run: range, size: int) -> Iterator[Span]:
    """Spans of ``size`` latent frames that fill ``run`` from its beginning, the last one shortened."""
    for start in range(run.start, run.stop, size):
        yield Span(start, min(start + size, run.stop))


def _runs(timeline: Timeline) -> list[range]:
    return list(Known(timeline.known).gaps(timeline.latent_frames))


def _tiles(timeline: Timeline, method: Method) -> Iterator[Span]:
    for run in _runs(timeline):
        yield from tile(run, method.section_size)


def forward(timeline: Timeline, method: Method) -> Iterator[Section]:
    """Vanilla and F1: one section after the other in time."""
    filling = _Filling(timeline, method)
    for span in _tiles(timeline, method):
        yield filling.make(span)


def paddings(sections: int) -> list[int]:
    """Blank sections before the target in the released inverted loop: n-1 ... 0, but short past four."""
    if sections > 4:
        return [3] + [2] * (sections - 3) + [1, 0]
    return list(reversed(range(sections)))


def inverted(timeline: Timeline, method: Method) -> Iterator[Section]:
    """The section last in time first, then back towards the start; each unknown run by itself."""
    filling = _Filling(timeline, method)
    for run in reversed(_runs(timeline)):
        spans = list(tile(run, method.section_size))
        for span, padding in zip(reversed(spans), paddings(len(spans)), strict=True):
            yield filling.make(span, padding=padding)


def anti_drifting(timeline: Timeline, method: Method) -> Iterator[Section]:
    """The first and the last section together, then forward with context on both sides.

    With an end keyframe the end is known already, and the order is forward with that anchor.
    """
    filling = _Filling(timeline, method)
    spans = list(_tiles(timeline, method))
    if len(spans) > 1 and spans[-1].stop == timeline.latent_frames:
        yield filling.make(spans[0], spans[-1])
        spans = spans[1:-1]
    for span in spans:
        yield filling.make(span)


def planned(timeline: Timeline, method: Method, endpoints: Sequence[int] | None = None) -> Iterator[Section]:
    """The sections that hold endpoints first, far ones first, then forward through every gap.

    endpoints: latent indices, negative ones from the end; one that is already known needs no section. By
        default about every fourth section and the last one.

    Raises:
        InputError: an endpoint outside the video.
    """
    filling = _Filling(timeline, method)
    spans = list(_tiles(timeline, method))
    first = _default_endpoints(len(spans)) if endpoints is None else _holding(spans, timeline, endpoints)
    for i in sorted(first, reverse=True):
        yield filling.make(spans[i])
    for i, span in enumerate(spans):
        if i not in first:
            yield filling.make(span)


def _default_endpoints(sections: int) -> set[int]:
    count = -(-sections // ENDPOINT_EVERY)
    return {(i + 1) * sections // count - 1 for i in range(count)}


def _holding(spans: Sequence[Span], timeline: Timeline, endpoints: Sequence[int]) -> set[int]:
    length = timeline.latent_frames
    found: set[int] = set()
    for endpoint in endpoints:
        if not -length <= endpoint < length:
            raise InputError(f"endpoint {endpoint}: this video has latent frames 0 to {length - 1}")
        found.update(i for i, span in enumerate(spans) if endpoint % length in span.frames)
    return found


PLANNERS: dict[str, Callable[[Timeline, Method], Iterator[Section]]] = {
    "vanilla": forward,
    "f1": forward,
    "anti-drifting": anti_drifting,
    "inverted": inverted,
    "planned": planned,
}


@dataclass(frozen=True)
class Plan:
    """Every section of one video, in the order of generation."""

    timeline: Timeline
    method: Method
    sections: tuple[Section, ...]

    def context_tokens(self, grid: Grid, *roles: str) -> int:
        """The most context tokens that any section has in the levels of ``roles`` (default: all)."""
        return max((section.tokens(grid, *roles) for section in self.sections), default=0)

    def to_json(self, grid: Grid, base: Kernel | None = None) -> dict[str, object]:
        """Plain values for one latent grid (height, width).

        ``base`` is the model's base kernel, by whose tokens the closed form counts; without it the finest
        kernel of the schedule.

        ``context_tokens`` and ``limit_tokens`` count the history with its tail; the frames pinned to the
        start and across the gap are counted on their own, as ``start_tokens`` and ``end_tokens``.
        """
        schedule = self.method.schedule
        base = base or schedule.base
        frame_tokens = Level(1, base).tokens(grid)
        return {
            "method": str(self.method),
            "order": self.method.order,
            "frames": self.timeline.frames,
            "latent_frames": self.timeline.latent_frames,
            "fps": self.timeline.fps,
            "sections": [section.to_json() for section in self.sections],
            "context_tokens": self.context_tokens(grid, "tail", "history"),
            "start_tokens": self.context_tokens(grid, "start"),
            "end_tokens": self.context_tokens(grid, "end"),
            "limit_tokens": schedule.limit_tokens(grid),
            "nominal_limit": schedule.nominal_limit(frame_tokens, base),
        }


def plan(timeline: Timeline, method: Method, *, endpoints: Sequence[int] | None = None) -> Plan:
    """Settle every section of a video.

    Raises:
        InputError: endpoints outside the video, or given to an order other than ``planned``.
    """
    if endpoints is not None and method.order != "planned":
        raise InputError(f"endpoints are for order planned, not {method.order}: leave them out")
    if method.order == "planned":
        sections = planned(timeline, method, endpoints)
    else:
        sections = PLANNERS[method.order](timeline, method)
    return Plan(timeline, method, tuple(sections))
