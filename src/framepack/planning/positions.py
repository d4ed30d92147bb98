"""At which time index each frame of a section stands: the three position rules.

Time indices in RoPE are free integers: gaps are allowed, which is what makes orders other than forward
possible (FramePack, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from framepack.planning.method import Method
from framepack.planning.sections import ContextLevel, Frames, Span

Places = list[list[int] | range]
"""Positions by level; a range for a tail in a row, so that it costs the same whatever its length."""


def is_backward(method: Method) -> bool:
    """Whether sections are made from the last to the first, so that history lies after the target."""
    return method.order == "inverted"


def place(
    method: Method, spans: Sequence[Span], context: Sequence[ContextLevel], padding: int
) -> tuple[tuple[int, ...], tuple[ContextLevel, ...]]:
    """Positions of the target frames, and ``context`` with its own, by the method's rule."""
    rules: dict[str, Callable[[], tuple[list[int], Places]]] = {
        "gap": lambda: _gap(method, spans, context),
        "released": lambda: _released(method, spans, context, padding),
        "constant": lambda: _constant(method, spans, context),
    }
    targets, places = rules[method.positions]()
    placed = (
        replace(level, positions=at if isinstance(at, range) else tuple(at))
        for level, at in zip(context, places, strict=True)
    )
    return tuple(targets), tuple(placed)


def _stand_ins(method: Method, level: ContextLevel) -> Frames:
    """The frames whose positions a level takes: for a mean the one nearest to the history levels."""
    if not level.mean:
        return level.frames
    return (level.frames[0 if is_backward(method) else -1],)


def _gap(method: Method, spans: Sequence[Span], context: Sequence[ContextLevel]) -> tuple[list[int], Places]:
    """True time indices; between two present frames at most ``max_gap`` missing ones; lowest index 0.

    Absent frames get indices of their own, before or after all that is present.
    """
    targets = [frame for span in spans for frame in span.frames]
    frames = [_stand_ins(method, level) for level in context]
    rows = [level for level in frames if isinstance(level, range)]  # of which the two ends are enough
    listed = [f for level in frames if not isinstance(level, range) for f in level if f is not None]
    present = sorted({*targets, *listed, *(end for row in rows for end in (row[0], row[-1]))})
    step = present[-1] if method.max_gap is None else method.max_gap + 1
    where: dict[int, int] = {}
    at, last = 0, present[0]
    for frame in present:
        together = any(frame in row and last in row for row in rows)
        at += frame - last if together else min(frame - last, step)
        where[frame], last = at, frame

    lists: list[list[int | None]] = [
        [] if isinstance(level, range) else [None if f is None else where[f] for f in level]
        for level in frames
    ]
    if any(None in level for level in lists):
        _place_absent(method, context, lists, list(where.values()))
    low = min([0, *(p for level in lists for p in level if p is not None)])
    places: Places = [
        range(where[level[0]] - low, where[level[-1]] - low + 1)
        if isinstance(level, range)
        else [p - low for p in placed if p is not None]
        for level, placed in zip(frames, lists, strict=True)
    ]
    return [where[f] - low for f in targets], places


def _place_absent(
    method: Method, context: Sequence[ContextLevel], places: list[list[int | None]], present: Sequence[int]
) -> None:
    """Fill the positions of absent frames: below all that is present, or above where they lie ahead."""
    history, start, end = (_of_role(context, role) for role in ("history", "start", "end"))
    history, start = history[::-1], start[::-1]
    down, up = (start, history + end) if is_backward(method) else (history + start, end)
    low, high = min(present), max(present)
    for i in down:
        for j in reversed(range(len(places[i]))):
            if places[i][j] is None:
                low -= 1
                places[i][j] = low
    for i in up:
        for j in range(len(places[i])):
            if places[i][j] is None:
                high += 1
                places[i][j] = high


def _of_role(context: Sequence[ContextLevel], role: str) -> list[int]:
    return [i for i, level in enumerate(context) if level.role == role]


def _slots(context: Sequence[ContextLevel], first: int, step: int, far: int) -> list[list[int]]:
    """Positions by slot: history from ``first`` near to far by ``step``, tail on ``far``, start from 0."""
    places: list[list[int]] = [[] for _ in context]
    at = first
    for i in reversed(_of_role(context, "history")):
        size = len(context[i].frames)
        places[i] = sorted(at + step * j for j in range(size))
        at += step * size
    at = 0
    for i in _of_role(context, "start"):
        size = len(context[i].frames)
        places[i] = list(range(at, at + size))
        at += size
    for i in _of_role(context, "tail"):
        places[i] = [far]
    return places


def _constant(
    method: Method, spans: Sequence[Span], context: Sequence[ContextLevel]
) -> tuple[list[int], Places]:
    """F1's indices, equal for every section: [start | history far to near | target], by slot.

    As in diffusers' `HunyuanVideoFramepackPipeline`, sampling type vanilla. A tail shares the farthest
    history slot. End frames, which that loop has not, follow the target at their clamped distance.
    """
    schedule = method.schedule
    far = schedule.start_frames
    first = far + schedule.history_frames
    frames = [frame for span in spans for frame in span.frames]
    targets = list(range(first, first + len(frames)))
    places = _slots(context, first - 1, -1, far)
    step = None if method.max_gap is None else method.max_gap + 1
    at, last = targets[-1], frames[-1]
    for i in _of_role(context, "end"):
        for frame in context[i].frames:
            delta = 1 if frame is None else frame - last
            at += delta if step is None else min(delta, step)
            last = last + 1 if frame is None else frame
            places[i].append(at)
    return targets, [*places]


def _released(
    method: Method, spans: Sequence[Span], context: Sequence[ContextLevel], padding: int
) -> tuple[list[int], Places]:
    """The released inverted loop: [start | padding * S blank | target | history near to far], by slot.

    As in diffusers' `HunyuanVideoFramepackPipeline`, sampling type inverted_anti_drifting. A tail shares
    the slot after the farthest history slot, and end frames follow it.
    """
    schedule = method.schedule
    first = schedule.start_frames + padding * method.section_size
    count = sum(map(len, spans))
    targets = list(range(first, first + count))
    far = first + count + schedule.history_frames
    places = _slots(context, first + count, 1, far)
    at = far + 1
    for i in _of_role(context, "end"):
        places[i] = list(range(at, at + len(context[i].frames)))
        at += len(places[i])
    return targets, [*places]
