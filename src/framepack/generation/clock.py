"""What a run costs: seconds by stage, and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Clock:
    """Seconds by stage: ``with clock("sample"): ...`` adds up. Each stage is one thread's at a time.

    other_peaks: the most bytes that each process beside this one has held.
    """

    def __init__(self, **seconds: float) -> None:
        self.seconds = dict(seconds)
        self.other_peaks: tuple[int, ...] = ()
        self._begun = time.perf_counter() - sum(seconds.values())

    @property
    def elapsed(self) -> float:
        """Seconds since it was made, and those it was made with: less than all stages where some overlap."""
        return time.perf_counter() - self._begun

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held: allocated on that GPU, resident elsewhere.

    Metal tells no peak; what its driver holds for the process, which is kept for reuse, stands for it.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _most_resident()


def resident_memory() -> int:
    """Bytes of memory this process holds now; the most it has held where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return _most_resident()


def _most_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS
