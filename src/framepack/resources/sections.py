"""The sections of a video by what they cost, whatever its length: exact, and without planning a day of them.

Where nothing is packed, a section's context follows from its place alone. With packed context the planner is
asked, but a long video is planned as a short one: once its levels are full, a longer one only has more of
sections that it has already.

Legend: n sections of a video, S latent frames of a section, L_f tokens of a latent frame at the base kernel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from framepack.errors import InputError
from framepack.models.spec import ModelSpec
from framepack.packing.schedule import Grid, Kernel, Tail, unpacked
from framepack.planning.method import Importance, Method
from framepack.planning.planners import ENDPOINT_EVERY, plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline
from framepack.resources.section_cost import Integers, Seen, Shape

PACKED, FULL, CACHE, WINDOW = "packed", "full history", "causal cache", "sliding window"
KINDS = (PACKED, FULL, CACHE, WINDOW)
MAX_PLANNED = 20_000
"""Sections that are planned one by one, where each may see more than the one before."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sections:
    """Sections of one video, those that cost the same once.

    target: latent frames that they make. context: tokens that they see. pixels: latent pixels which the
        kernels of the context gather. times: how many sections are so.
    frames: latent frames that they see. shapes: of packed context.
    """

    target: Integers
    context: Integers
    pixels: Integers
    times: Integers
    frames: Integers
    shapes: tuple[Shape, ...] = ()

    @property
    def count(self) -> int:
        return int(self.times.sum())

    @property
    def dearest(self) -> int:
        """The place of the sections that cost most: of whole ones, if there are any, that see most."""
        return int(np.lexsort((self.pixels, self.context, self.target))[-1])


def grid_of(spec: ModelSpec, size: tuple[int, int] | None) -> tuple[int, int]:
    """The latent grid of frames of ``size`` (height, width) in px, by default the model's first.

    Raises:
        InputError: sides that are no multiples of the codec's stride.
    """
    height, width = spec.buckets[0] if size is None else size
    stride = spec.spatial_stride
    if height < stride or width < stride or height % stride or width % stride:
        raise InputError(f"size {width}x{height}: both must be multiples of {stride}")
    return height // stride, width // stride


def timeline_of(spec: ModelSpec, method: Method, seconds: float, fps: float) -> Timeline:
    """Of a video that goes on from a start picture. Raises InputError: a length or rate that none has."""
    return Timeline.from_seconds(
        seconds, fps=fps, stride=spec.temporal_stride, known=(0,), clip=spec.clip(method)
    )


def frames_per_section(timeline: Timeline, size: int) -> int:
    """Frames that one whole section adds to a video."""
    return size * timeline.stride if timeline.clip is None else 1 + (size - 1) * timeline.stride


def count_of(timeline: Timeline, size: int) -> int:
    """Sections of a video of which nothing but the start is known."""
    assert set(timeline.known) <= {0}, timeline.known
    return -(-(timeline.latent_frames - len(timeline.known)) // size)


def whole(timeline: Timeline, size: int, sections: int) -> Timeline:
    """A timeline like this one of so many whole sections."""
    return replace(timeline, frames=1 + sections * frames_per_section(timeline, size))


# Unpacked ------------------------------------------------------------------------------------------------


def unpacked_method(method: Method, base: Kernel, frames: int) -> Method:
    """Forward in time, the nearest ``frames`` latent frames at the base kernel; the rest as in ``method``."""
    return replace(
        method,
        schedule=unpacked(frames, base),
        order="vanilla",
        absent="drop",
        positions="gap",
        importance=Importance(),
        discretized=False,
    )


def unpacked_sections(
    timeline: Timeline, method: Method, grid: Grid, base: Kernel, window: int | None = None
) -> Sections:
    """Section i of n sees 1 + i S latent frames, or the nearest ``window`` of them, L_f tokens each."""
    size, known = method.section_size, len(timeline.known)
    i = np.arange(count_of(timeline, size), dtype=np.int64)
    frames = known + i * size
    target = np.minimum(timeline.latent_frames - frames, size)
    if window is not None:
        frames = np.minimum(frames, window)
    per_frame = Shape(0, (Seen(base, 1),))
    return Sections(
        target=target,
        context=frames * per_frame.context_tokens(grid),
        pixels=frames * per_frame.context_pixels(grid),
        times=np.ones_like(i),
        frames=frames,
    )


# Packed --------------------------------------------------------------------------------------------------


def shape_of(section: Section) -> Shape:
    """What of a planned section its cost depends on."""
    levels = (Seen(s.kernel, 1 if s.mean else len(s.frames), s.pool) for s in section.context if s.frames)
    return Shape(len(section.frames), tuple(levels))


def packed_sections(timeline: Timeline, method: Method, grid: Grid) -> Sections:
    """As the method's order plans them.

    Raises:
        InputError: an appended tail, which grows with the video, and too many sections to plan each.
    """
    method = replace(method, importance=Importance())  # another choice of frames, as many to each level
    shapes = _shapes(timeline, method)
    found = sorted(shapes, key=lambda shape: (shape.target, shape.context_tokens(grid)))
    return Sections(
        target=np.array([shape.target for shape in found], dtype=np.int64),
        context=np.array([shape.context_tokens(grid) for shape in found], dtype=np.int64),
        pixels=np.array([shape.context_pixels(grid) for shape in found], dtype=np.int64),
        times=np.array([shapes[shape] for shape in found], dtype=np.int64),
        frames=np.array([sum(level.frames for level in shape.seen) for shape in found], dtype=np.int64),
        shapes=tuple(found),
    )


def _shapes(timeline: Timeline, method: Method) -> Counter[Shape]:
    """How often each shape occurs."""
    sections, schedule = count_of(timeline, method.section_size), method.schedule
    if schedule.tail is Tail.APPEND:
        if sections > MAX_PLANNED:
            raise InputError(
                f"{sections:,} sections with an appended tail, whose tokens grow with the video: up to "
                f"{MAX_PLANNED:,} are planned, ask for a shorter video or for tail td or tc"
            )
        return _planned(timeline, method)
    filled = schedule.history_frames + schedule.start_frames + schedule.end_frames
    # Endpoints of a planned order are spread over all of the video: every fourth section is one.
    enough = 2 * ENDPOINT_EVERY * (-(-filled // method.section_size) + ENDPOINT_EVERY)
    more, left = divmod(sections - enough, ENDPOINT_EVERY)
    if more < 2:
        return _planned(timeline, method)
    short = enough + left
    dropped = (sections - short) * frames_per_section(timeline, method.section_size)
    begin = replace(timeline, frames=timeline.frames - dropped)
    longer = replace(
        begin, frames=begin.frames + ENDPOINT_EVERY * frames_per_section(begin, method.section_size)
    )
    found, after = _planned(begin, method), _planned(longer, method)
    for shape in {*found, *after}:
        found[shape] += more * (after[shape] - found[shape])
    assert min(found.values()) >= 0, str(method)
    return +found


def _planned(timeline: Timeline, method: Method) -> Counter[Shape]:
    return Counter(map(shape_of, plan(timeline, method).sections))


def window_of(method: Method, grid: Grid, base: Kernel) -> int:
    """Latent frames at the base kernel of as many tokens as packed context has at most, rounded up."""
    schedule = method.schedule
    most = (schedule.limit_tokens(grid) or 0) + schedule.start_tokens(grid) + schedule.end_tokens(grid)
    if schedule.tail is Tail.APPEND:
        most = sum(level.tokens(grid) for level in (*schedule.levels, *schedule.start, *schedule.end))
    return max(1, -(-most // Shape(0, (Seen(base, 1),)).context_tokens(grid)))
