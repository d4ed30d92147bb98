"""Which latent frames of a timeline are known, as disjoint ranges: a few ranges, however long the video."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Known:
    """A growing set of latent indices kept as sorted, disjoint, non-touching ranges [start, stop)."""

    def __init__(self, frames: Iterable[int] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for frame in frames:
            self.add(frame, frame + 1)

    def add(self, start: int, stop: int) -> None:
        """Add start .. stop - 1, merging with the ranges it touches."""
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def __contains__(self, frame: int) -> bool:
        at = bisect_right(self._starts, frame) - 1
        return at >= 0 and frame < self._stops[at]

    def before(self, stop: int, count: int) -> list[int]:
        """Up to ``count`` known frames before ``stop``, nearest first."""
        found: list[int] = []
        at = bisect_left(self._starts, stop) - 1
        while at >= 0 and len(found) < count:
            high = min(stop, self._stops[at])
            low = max(self._starts[at], high - (count - len(found)))
            found.extend(range(high - 1, low - 1, -1))
            at -= 1
        return found

    def after(self, start: int, count: int) -> list[int]:
        """Up to ``count`` known frames from ``start`` on, nearest first."""
        found: list[int] = []
        at = bisect_right(self._stops, start)
        while at < len(self._starts) and len(found) < count:
            low = max(start, self._starts[at])
            high = min(self._stops[at], low + count - len(found))
            found.extend(range(low, high))
            at += 1
        return found

    def between(self, start: int, stop: int) -> list[range]:
        """The known frames of start .. stop - 1 as ranges in order of time."""
        found = []
        for at in range(bisect_right(self._stops, start), len(self._starts)):
            low, high = max(start, self._starts[at]), min(stop, self._stops[at])
            if low >= stop:
                break
            if low < high:
                found.append(range(low, high))
        return found

    def gaps(self, stop: int) -> Iterable[range]:
        """The unknown runs of 0 .. stop - 1 in order of time."""
        at = 0
        for low, high in zip(self._starts, self._stops, strict=True):
            if at < min(low, stop):
                yield range(at, min(low, stop))
            at = high
        if at < stop:
            yield range(at, stop)
