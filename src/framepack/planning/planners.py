"""The orders in which a timeline is filled, each a generator of `Section`s.

All orders cut the unknown latent frames into the same tiles: each unknown run from its beginning into
sections of S, the last of the run shortened. Known frames are never written; they are context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from framepack.errors import InputError
from framepack.packing.schedule import Grid, Kernel, Level
from framepack.planning.known import Known
from framepack.planning.layout import lay_out
from framepack.planning.method import Method
from framepack.planning.script import Script
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


def tiles(timeline: Timeline, method: Method) -> list[Span]:
    """What sections write, in order of time."""
    return [span for run in _runs(timeline) for span in tile(run, method.section_size)]


def forward(timeline: Timeline, method: Method) -> Iterator[Section]:
    """Vanilla and F1: one section after the other in time."""
    filling = _Filling(timeline, method)
    for span in tiles(timeline, method):
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
    spans = tiles(timeline, method)
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
    spans = tiles(timeline, method)
    first = _default_endpoints(len(spans)) if endpoints is None else _holding(spans, timeline, endpoints)
    for i in sorted(first, reverse=True):
        yield filling.make(spans[i])
    for i, span in enumerate(spans):
        if i not in first:
            yield filling.make(span)


def scene_endpoints(timeline: Timeline, method: Method, script: Script) -> list[int] | None:
    """Endpoints of a story: where each scene's prompt first holds alone, and the end; None for one scene."""
    if len(script.turns) == 1:
        return None
    spans = tiles(timeline, method)
    first = [span for _, span in script.switches(spans, timeline, whole=True) if span is not None]
    return [span.start for span in (*first, *spans[-1:])]


def _apart(timeline: Timeline, method: Method, script: Script) -> list[int] | None:
    """The two ends that `anti_drifting` would make together, where they have different prompts."""
    spans = tiles(timeline, method)
    if len(spans) < 2 or spans[-1].stop < timeline.latent_frames:
        return None
    first, last = spans[0], spans[-1]
    return None if script.mix(first, timeline) == script.mix(last, timeline) else [first.start, last.start]


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
    """Every section of one video, in the order of generation.

    loop: latent frames at the end of the timeline that are those at its start once more, so that what comes
    before them leads there; they are not shown.
    """

    timeline: Timeline
    method: Method
    sections: tuple[Section, ...]
    loop: int = 0

    @property
    def shown(self) -> Timeline:
        """The timeline of the video itself."""
        if not self.loop:
            return self.timeline
        length = self.timeline.latent_frames - self.loop
        known = tuple(frame for frame in self.timeline.known if frame < length)
        return replace(self.timeline, frames=1 + (length - 1) * self.timeline.stride, known=known)

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
            "frames": self.shown.frames,
            "latent_frames": self.shown.latent_frames,
            "known": list(self.shown.known),
            "loop": self.loop,
            "fps": self.timeline.fps,
            "sections": [section.to_json() for section in self.sections],
            "context_tokens": self.context_tokens(grid, "tail", "history"),
            "start_tokens": self.context_tokens(grid, "start"),
            "end_tokens": self.context_tokens(grid, "end"),
            "limit_tokens": schedule.limit_tokens(grid),
            "nominal_limit": schedule.nominal_limit(frame_tokens, base),
        }


def plan(
    timeline: Timeline,
    method: Method,
    *,
    endpoints: Sequence[int] | None = None,
    loop: bool = False,
    script: Script | None = None,
) -> Plan:
    """Settle every section of a video.

    Args:
        endpoints: see `planned`. loop: its end leads to its start.
        script: prompts by time. Its scenes are the endpoints of order ``planned``, unless they are given; and
            order ``anti-drifting`` makes first and last section apart where their prompts differ.

    Raises:
        InputError: endpoints outside the video, or given to an order other than ``planned``; a loop of one
            section, with a known end, or that ends within a latent frame.
    """
    if endpoints is not None and method.order != "planned":
        raise InputError(f"endpoints are for order planned, not {method.order}: leave them out")
    if not loop:
        return Plan(timeline, method, tuple(_in_order(timeline, method, endpoints, script)))
    first, around = _around(timeline, method)
    rest = _in_order(around, method, endpoints, script)
    later = (replace(section, index=section.index + 1) for section in rest)
    tail = around.latent_frames - timeline.latent_frames
    return Plan(around, method, (first, *later), loop=tail)


def again(plan: Plan, section: Section) -> Section:
    """The same section with all the rest of the video known, after it as before."""
    length = plan.timeline.latent_frames
    known = Known()
    at = 0
    for span in (*section.spans, Span(length, length)):
        known.add(at, span.start)
        at = span.stop
    return lay_out(plan.method, known, section.spans, index=section.index, length=length)


def _in_order(
    timeline: Timeline, method: Method, endpoints: Sequence[int] | None, script: Script | None
) -> Iterator[Section]:
    if method.order == "planned":
        if endpoints is None and script is not None:
            endpoints = scene_endpoints(timeline, method, script)
        return planned(timeline, method, endpoints)
    if method.order == "anti-drifting" and script is not None:
        ends = _apart(timeline, method, script)
        if ends is not None:
            return planned(timeline, method, ends)
    return PLANNERS[method.order](timeline, method)


def _around(timeline: Timeline, method: Method) -> tuple[Section, Timeline]:
    """The first section of a loop, and the timeline that goes on to it again, with all of that known."""
    spans, length = tiles(timeline, method), timeline.latent_frames
    if len(spans) < 2:
        raise InputError(f"a loop of {len(spans)} section: it needs two or more, ask for a longer video")
    if length - 1 in timeline.known:
        raise InputError("a loop ends where it begins: leave the end out of what is given")
    if timeline.trimmed_frames:
        raise InputError(
            f"a loop of {timeline.frames} frames ends within a latent frame: ask for {timeline.padded_frames}"
        )
    tail = spans[0].stop
    around = replace(timeline, frames=timeline.frames + tail * timeline.stride)
    first = _Filling(around, method).make(spans[0])
    return first, replace(around, known=(*timeline.known, *range(tail), *range(length, length + tail)))
