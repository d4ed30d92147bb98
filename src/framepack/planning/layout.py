"""Which frames a section sees, and at which level.

Seen from a section made forward in time, history lies before it, ``start`` is pinned to the video's first
frames and ``end`` holds the next known frames across the gap. A section made backward (``inverted``) sees
the mirror image: history after it, ``end`` pinned to the video's last frames, ``start`` the nearest known
frames before the gap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from framepack.packing.schedule import TAIL_POOL, Level, Tail
from framepack.planning.known import Known
from framepack.planning.method import Method
from framepack.planning.positions import is_backward, place
from framepack.planning.sections import ContextLevel, Frames, Section, Span


def lay_out(
    method: Method, known: Known, spans: Sequence[Span], *, index: int, length: int, padding: int = 0
) -> Section:
    """The section that writes ``spans``, given the frames ``known`` so far.

    length: latent frames of the timeline. padding: blank sections before the target under ``released``.
    """
    context = _pick(method, known, spans, length)
    positions, placed = place(method, spans, context, padding)
    past, future = _neighbours(spans, placed)
    return Section(
        index=index,
        spans=tuple(spans),
        positions=positions,
        context=placed,
        past=past,
        future=future,
        candidates=_candidates(method, known, spans, placed, length),
    )


def choose(section: Section, ranking: Sequence[int], method: Method) -> Section:
    """Give the history levels to the frames of ``ranking``, most important first (FramePack, section 3.2).

    The nearest (finest) level takes the most important frames; within a level frames stay in order of time.
    Positions follow under the ``gap`` rule; the other rules fix them by slot. A tail stays as planned.

    Raises:
        ValueError: a frame that is not among the section's candidates, or is ranked twice.
    """
    if len(set(ranking)) != len(ranking) or not set(ranking) <= set(section.candidates):
        raise ValueError(f"section {section.index}: ranking {list(ranking)} must hold candidates, each once")
    backward = is_backward(method)
    left = list(ranking)
    context: list[ContextLevel] = []
    for level in reversed(section.context):
        if level.role == "history":
            size = len(level.present)
            taken, left = left[:size], left[size:]
            level = replace(level, frames=_padded(sorted(taken), len(level.frames), front=not backward))
        context.append(level)
    context.reverse()
    positions, placed = section.positions, tuple(context)
    if method.positions == "gap":
        positions, placed = place(method, section.spans, context, padding=0)
    past, future = _neighbours(section.spans, placed)
    return replace(section, positions=positions, context=placed, past=past, future=future)


def _padded(frames: Sequence[int], size: int, *, front: bool) -> tuple[int | None, ...]:
    absent: tuple[int | None, ...] = (None,) * (size - len(frames))
    return (*absent, *frames) if front else (*frames, *absent)


# Which frames ----------------------------------------------------------------------------------------


def _pick(method: Method, known: Known, spans: Sequence[Span], length: int) -> list[ContextLevel]:
    """Context levels with frames and, as yet, no positions."""
    schedule = method.schedule
    if is_backward(method):
        origin, pinned_levels = spans[-1].stop, schedule.end[::-1]
        window = range(max(origin, length - schedule.end_frames), length)
        pinned = [frame for ranged in known.between(window.start, window.stop) for frame in ranged][::-1]
        across = sorted(known.before(spans[0].start, schedule.start_frames))
    else:
        origin, pinned_levels = spans[0].start, schedule.start
        window = range(min(schedule.start_frames, origin))
        pinned = [frame for ranged in known.between(window.start, window.stop) for frame in ranged]
        across = known.after(spans[0].stop, schedule.end_frames)

    history, pins, cursor = _by_rank(method, known, origin, pinned, pinned_levels)
    tail = _tail(method, known, cursor, window)
    near_to_far = schedule.levels[::-1]
    # Where absent frames go: at the far end of history, past what is known of start and end.
    far_front = not is_backward(method)
    start_levels, end_levels = (
        (schedule.start, pinned_levels) if is_backward(method) else (pinned_levels, schedule.end)
    )
    across_split = _split(across, schedule.start if is_backward(method) else schedule.end)
    start_split, end_split = (across_split, pins) if is_backward(method) else (pins, across_split)

    context = [*tail]
    context += _levels(method, "history", near_to_far, history, front=far_front)[::-1]
    context += _levels(method, "start", start_levels, start_split, front=False)
    ends = _levels(method, "end", end_levels, end_split, front=is_backward(method))
    context += ends[::-1] if is_backward(method) else ends
    return context


def _by_rank(
    method: Method, known: Known, origin: int, pinned: list[int], pinned_levels: Sequence[Level]
) -> tuple[list[list[int]], list[list[int]], int]:
    """Frames of the history levels (near to far) and of the pinned levels, and where the tail begins.

    Rank by rank, so that while little is known the fine levels of both are filled first. A frame is seen
    once; only F1 keeps its start frame in the history too, as its released loop does.
    """
    backward, shared = is_backward(method), method.order == "f1"
    near_to_far = method.schedule.levels[::-1]
    history: list[list[int]] = []
    pins: list[list[int]] = []
    seen: set[int] = set()
    pinned_seen: set[int] = set()
    cursor = origin
    for rank in range(max(len(near_to_far), len(pinned_levels))):
        if rank < len(pinned_levels):
            free = [frame for frame in pinned if frame not in pinned_seen and (shared or frame not in seen)]
            pins.append(sorted(free[: pinned_levels[rank].frames]))
            pinned_seen.update(pins[-1])
        if rank < len(near_to_far):
            skip: set[int] = set() if shared else pinned_seen
            count = near_to_far[rank].frames
            near = (known.after if backward else known.before)(cursor, count + len(skip))
            taken = [frame for frame in near if frame not in skip][:count]
            history.append(sorted(taken))
            seen.update(taken)
            if taken:
                cursor = taken[-1] + 1 if backward else taken[-1]
    return history, pins, cursor


def _tail(method: Method, known: Known, cursor: int, window: range) -> list[ContextLevel]:
    """What lies past the levels: nothing, all of it pooled, or all of it as one mean."""
    policy = method.schedule.tail
    if policy is Tail.DELETE:
        return []
    if is_backward(method):
        ranges = known.between(cursor, window.start)
    else:
        ranges = known.between(0 if method.order == "f1" else window.stop, cursor)
    if not ranges:
        return []
    frames: Frames = ranges[0]
    if len(ranges) > 1:
        frames = tuple(frame for ranged in ranges for frame in ranged)
    far = method.schedule.levels[0].kernel
    if policy is Tail.COMPRESS:
        return [ContextLevel("tail", far, frames, (), mean=True)]
    return [ContextLevel("tail", far, frames, (), pool=TAIL_POOL)]


def _split(frames: Sequence[int], levels: Sequence[Level]) -> list[list[int]]:
    parts, at = [], 0
    for level in levels:
        parts.append(list(frames[at : at + level.frames]))
        at += level.frames
    return parts


def _levels(
    method: Method, role: str, levels: Sequence[Level], frames: Sequence[list[int]], *, front: bool
) -> list[ContextLevel]:
    """Context levels without positions; absent frames become None at one end, or are left out."""
    made = []
    for level, present in zip(levels, frames, strict=True):
        size = level.frames if method.absent == "zeros" else len(present)
        if size:
            made.append(ContextLevel(role, level.kernel, _padded(present, size, front=front), ()))
    return made


def _candidates(
    method: Method, known: Known, spans: Sequence[Span], context: Sequence[ContextLevel], length: int
) -> tuple[int, ...]:
    """The pool of a ranker: the nearest frames and, evenly spaced over all older ones, as many again."""
    if method.importance.kind == "time":
        return ()
    size = max(method.importance.pool, method.schedule.history_frames)
    pinned = {f for level in context if level.role in ("start", "end") for f in level.present}
    if method.order == "f1":
        pinned = set()
    if is_backward(method):
        nearest = known.after(spans[-1].stop, size + len(pinned))
        older = known.between(nearest[-1] + 1, length) if nearest else []
    else:
        nearest = known.before(spans[0].start, size + len(pinned))
        older = known.between(0, nearest[-1]) if nearest else []
    chosen = {frame for frame in nearest if frame not in pinned}
    total = sum(map(len, older))
    count = min(size, total)
    wanted = [(2 * i + 1) * total // (2 * count) for i in range(count)]
    offset = at = 0
    for ranged in older:
        while at < count and wanted[at] < offset + len(ranged):
            chosen.add(ranged[wanted[at] - offset])
            at += 1
        offset += len(ranged)
    return tuple(sorted(chosen - pinned))


def _neighbours(
    spans: Sequence[Span], context: Sequence[ContextLevel]
) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Per span, the nearest context frames before and after it; a tail is too coarse to count."""
    frames = sorted({frame for level in context if level.role != "tail" for frame in level.present})
    past: list[int | None] = []
    future: list[int | None] = []
    for span in spans:
        at = bisect_left(frames, span.start)
        past.append(frames[at - 1] if at else None)
        future.append(frames[at] if at < len(frames) else None)
    return tuple(past), tuple(future)
