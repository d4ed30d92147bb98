"""A run as users have it, from request to video on disk, timed and weighed section by section."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from framepack.generation.clock import resident_memory
from framepack.generation.events import Decoded, Event, Finished, SectionFinished, Started
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.models.bundle import Bundle

MIB = 1024 * 1024


class _Enough(Exception):
    """Ends a run that need not be finished."""


@dataclass(frozen=True, kw_only=True)
class SectionCost:
    """One section.

    Attributes:
        seconds: from the end of the one before to its own: choosing, packing, sampling, storing.
        cpu_seconds: of all threads of this process; hardly moved by what else the machine is doing.
        resident: bytes of memory after it.
    """

    seconds: float
    cpu_seconds: float
    resident: int


@dataclass(kw_only=True)
class RunCost:
    """A whole run.

    Attributes:
        stages: seconds by stage, as ``Finished`` tells them; empty when the run was stopped.
        wall: seconds from the first event to the last.
        resident: bytes of memory after decoding; 0 when the run was stopped.
        peaks: the most bytes that each process has held, this one first; empty when the run was stopped.
    """

    context_tokens: int = 0
    frames: int = 0
    fps: float = 0.0
    sections: list[SectionCost] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    wall: float = 0.0
    resident: int = 0
    peaks: tuple[int, ...] = ()


def measure(
    request: GenerateRequest,
    bundle: Bundle | None = None,
    *,
    stop: Callable[[RunCost], bool] = lambda cost: False,
    on_section: Callable[[RunCost, int], None] = lambda cost, sections: None,
) -> RunCost:
    """Carry a request out in a folder that is removed afterwards.

    Args:
        bundle: a loaded model in place of the request's own.
        stop: asked after every section; the run ends there when it says so.
        on_section: told the cost so far and how many sections there will be.
    """
    cost = RunCost()
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as name:
        folder = Path(name)
        job = prepare(replace(request, out=folder / "video.mp4", workdir=folder / "run"), bundle)
        cost.context_tokens, cost.frames, cost.fps = job.context_tokens, job.config.frames, job.config.fps
        begun, cpu = time.perf_counter(), time.process_time()

        def told(event: Event) -> None:
            nonlocal begun, cpu
            if isinstance(event, Started):
                begun, cpu = time.perf_counter(), time.process_time()
            elif isinstance(event, SectionFinished):
                spent = time.process_time()
                held = resident_memory()
                section = SectionCost(seconds=event.seconds, cpu_seconds=spent - cpu, resident=held)
                cost.sections.append(section)
                cpu = spent
                on_section(cost, event.sections)
                if stop(cost):
                    raise _Enough
            elif isinstance(event, Decoded):
                cost.resident = resident_memory()
            elif isinstance(event, Finished):
                cost.stages = dict(event.seconds)
                cost.peaks = (event.peak_memory, *event.other_peaks)

        with contextlib.suppress(_Enough):
            job.carry_out(told)
        cost.wall = time.perf_counter() - begun
    return cost
