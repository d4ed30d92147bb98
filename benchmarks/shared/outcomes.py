"""Training steps of several kinds side by side: each counted, and carried out in turn where limits allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from shared.memory import GIB, largest_batch
from shared.steps import Counted, Peaks, Real, Seconds, explicit
from shared.subject import IMAGE, Point, Subject


@dataclass(frozen=True)
class Outcome:
    """Steps of one kind and batch.

    measured: peak of one that was carried out. seconds: of one step in each round. left_out: why not.
    """

    point: Point
    batch: int
    counted: Peaks
    measured: Peaks | None = None
    seconds: tuple[Seconds, ...] = ()
    left_out: str = ""

    @property
    def wall(self) -> float | None:
        """Median seconds of a step."""
        return float(np.median([each.wall for each in self.seconds])) if self.seconds else None

    @property
    def rate(self) -> float | None:
        """Samples a second."""
        return None if self.wall is None else self.batch / self.wall


Outcomes = dict[Point, Outcome]


class Bench:
    """Counts steps, and carries out those that are within the limits.

    Args:
        room: bytes that a step may take. limit: seconds that one may take, as foretold by the others.
    """

    def __init__(self, subject: Subject, device: torch.device, room: float, limit: float) -> None:
        self.subject, self.device, self.room, self.limit = subject, device, room, limit
        self.counted = Counted(subject, explicit=explicit(subject, device))
        self._real: Real | None = None
        self._speed: tuple[float, float] | None = None
        """Operations, and operations a second, of the largest step so far."""

    @property
    def clocks(self) -> dict[str, str]:
        """Fields of `Seconds` by name. A GPU's time is not that of the threads which keep it busy."""
        return {"time": "wall"} | ({"CPU time": "cpu"} if self.device.type == "cpu" else {})

    def operations(self, point: Point, batch: int) -> int:
        return batch * self.counted.operations(point)

    def a_sample(self, point: Point) -> int:
        """Bytes that one more sample adds to forward and backward."""
        one, two = (self.counted.peaks(point, batch).backward for batch in (1, 2))
        return two - one

    def remarks(self) -> list[str]:
        """What is to be known of the numbers on this device."""
        lines = []
        if self.device.type == "cuda":
            lines.append("measured: what CUDA's allocator gave out, without its reserve and CUDA's context")
        else:
            lines.append(
                "measured: all tensors; a process peaks there under MALLOC_MMAP_THRESHOLD_=65536, and up to "
                "a third higher under glibc's own threshold, which scatters what is freed"
            )
        if explicit(self.subject, self.device):
            lines.append(
                "attention as in training on CPUs: explicit up to 2,048 tokens, which keeps probabilities, "
                "and fused beyond"
            )
        if self.subject.config.checkpointing:
            lines.append("activations are computed again for the gradient, block by block")
        return lines

    def refusal(self, point: Point, batch: int) -> str:
        """Why a step is not carried out; empty where it is."""
        if self.limit == 0:
            return "only counted"
        needed = self.counted.peaks(point, batch).most
        if needed > self.room:
            return f"above the {self.room / GIB:.1f} GiB that there are"
        if self._speed is not None:
            foretold = self.operations(point, batch) / self._speed[1]
            if foretold > self.limit:
                return f"foretold to be above --limit {self.limit:g} s"
        return ""

    @property
    def real(self) -> Real:
        if self._real is None:
            self._real = Real(self.subject, self.device)
        return self._real

    def run(self, wanted: Sequence[tuple[Point, int]], repeats: int, tell: Callable[[str], None]) -> Outcomes:
        """Small steps first, which foretell what large ones take; then rounds of one step each."""
        found: Outcomes = {}
        for point, batch in sorted(wanted, key=lambda each: self.operations(*each)):
            counted, refusal = self.counted.peaks(point, batch), self.refusal(point, batch)
            found[point] = Outcome(point, batch, counted, left_out=refusal)
            if refusal:
                continue
            real, begun = self.real, time.perf_counter()
            measured = real.weigh(point, batch)
            seconds = time.perf_counter() - begun
            if measured is None:
                found[point] = replace(found[point], left_out="it ran out of memory")
                continue
            found[point] = replace(found[point], measured=measured)
            operations = self.operations(point, batch)
            if self._speed is None or operations >= self._speed[0]:
                self._speed = (operations, operations / seconds)
            tell(f"{name_of(point)}: batch {batch}, {seconds:.2f} s")
        for _ in range(repeats):
            for point, outcome in found.items():
                if outcome.measured is not None:
                    took = self.real.seconds(point, outcome.batch)
                    if took is not None:
                        found[point] = replace(outcome, seconds=(*outcome.seconds, took))
        return found

    def largest(self, point: Point, memory: float) -> int:
        """Found by steps on a GPU that is given so much memory, else by counting."""

        def peak(batch: int) -> float:
            if self.device.type == "cuda" and memory <= self.room and not self.refusal(point, batch):
                peaks = self.real.weigh_within(memory, point, batch)
                return float("inf") if peaks is None else peaks.most
            return self.counted.peaks(point, batch).most

        return largest_batch(peak, memory)


def name_of(point: Point) -> str:
    return IMAGE if point.kind == IMAGE else f"{point.kind}, {point.history}"


def faster(one: Outcome, other: Outcome, clock: str = "wall") -> float | None:
    """Samples a second of one in units of the other's, the median over rounds."""
    if not one.seconds or len(one.seconds) != len(other.seconds):
        return None
    pairs = zip(one.seconds, other.seconds, strict=True)
    return float(
        np.median([one.batch * getattr(b, clock) / (other.batch * getattr(a, clock)) for a, b in pairs])
    )
