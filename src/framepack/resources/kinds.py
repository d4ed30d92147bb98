"""What a video takes with one kind of context, by what its sections take.

Packed is the model's own method. Full history has all earlier latent frames at the base kernel. A causal
cache keeps the keys and values of all earlier frames from section to section, and a section computes its own
tokens alone (Yin and others 2025, "CausVid"). A sliding window has as many tokens as packed context, all of
them of the nearest frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from framepack.models.spec import ModelSpec
from framepack.planning.method import Method
from framepack.planning.timeline import Timeline
from framepack.resources.hollow import Architecture
from framepack.resources.section_cost import Numbers, SectionCost, Shape
from framepack.resources.sections import (
    CACHE,
    PACKED,
    WINDOW,
    Sections,
    packed_sections,
    unpacked_sections,
    window_of,
)
from framepack.sampling.shown import context_timestep


@dataclass(frozen=True, kw_only=True)
class Point:
    """A video of one length.

    context: tokens that the dearest section sees. operations, memory, time: of that section, all its steps;
    FLOP, most bytes at once, seconds. total_operations, total_time: of all sections.
    """

    seconds: float
    sections: int
    context: int
    operations: float
    memory: float
    time: float
    total_operations: float
    total_time: float


@dataclass(frozen=True)
class Throughput:
    """FLOP a second in attention between latent tokens, and in all the rest."""

    attention: float
    rest: float

    def seconds(self, rest: Numbers, attention: Numbers) -> Numbers:
        return rest / self.rest + attention / self.attention


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What is simulated.

    window: latent frames of the sliding window. branches: calls of guidance in a step. batch: of them in one
        call. device: where it computes, or would.
    """

    architecture: Architecture
    method: Method
    grid: tuple[int, int]
    window: int
    steps: int
    branches: int
    batch: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        method: Method,
        grid: tuple[int, int],
        *,
        steps: int,
        guidance: float,
        dtype: torch.dtype,
        device: torch.device,
        window: int | None = None,
    ) -> Simulated:
        """As sampling goes about it: both branches of guidance are one call on a CPU, else one after the
        other. ``window``: by default as many tokens as packed context has at most."""
        branches = 1 + (guidance != 1.0) + (method.history_guidance != 1.0)
        return cls(
            architecture=architecture,
            method=method,
            grid=grid,
            window=window or window_of(method, grid, architecture.spec.base_kernel),
            steps=steps,
            branches=branches,
            batch=2 if device.type == "cpu" and branches == 2 and guidance != 1.0 else 1,
            dtype=dtype,
            device=device,
        )

    @property
    def spec(self) -> ModelSpec:
        return self.architecture.spec

    def cost(self, *, isolated: bool = False) -> SectionCost:
        return SectionCost(
            self.architecture,
            self.grid,
            section=self.method.section_size,
            kernels=() if isolated else self.method.schedule.kernels,
            dtype=self.dtype,
            device=self.device,
            batch=self.batch,
            timestep=context_timestep(self.method),
            isolated=isolated,
        )

    def sections(self, kind: str, timeline: Timeline) -> Sections:
        if kind == PACKED:
            return packed_sections(timeline, self.method, self.grid)
        window = self.window if kind == WINDOW else None
        return unpacked_sections(timeline, self.method, self.grid, self.spec.base_kernel, window)


class Kind:
    """One kind of context."""

    def __init__(self, kind: str, model: Simulated, cost: SectionCost) -> None:
        self.kind, self.model, self._cost = kind, model, cost

    def work(self, sections: Sections) -> tuple[Numbers, Numbers]:
        """Operations of each section's steps: attention between latent tokens, and before it all the rest."""
        model, cost = self.model, self._cost
        per_frame = cost.plain(1, 0).target_tokens(model.grid, model.spec.base_kernel)
        found = cost.operations(sections.target * per_frame, sections.context, sections.pixels)
        calls = model.branches / model.batch
        if self.kind == CACHE:  # one call more leaves the keys and values of the clean frames
            once = calls * (model.steps + 1)
            return once * found.later_rest, once * found.later_attention
        later = model.steps - 1
        return (
            calls * (found.first_rest + later * found.later_rest),
            calls * (found.first_attention + later * found.later_attention),
        )

    def memory(self, sections: Sections) -> float:
        """Bytes at the peak of the dearest section; of one cut short, as if it were whole."""
        model, cost, at = self.model, self._cost, sections.dearest
        size, others = model.method.section_size, model.branches / model.batch - 1
        if sections.shapes:
            count = cost.count(replace(sections.shapes[at], target=size))
            return count.peak + others * count.cached
        frames = sections.frames[at : at + 1]
        kept = cost.count(cost.plain(size, 1)).cached * int(frames[0]) if self.kind == CACHE else 0
        return float(cost.peaks(frames)[0] + others * kept)

    def one(self, shape: Shape) -> Sections:
        """A single section of this shape."""
        _, context, pixels = self._cost.sizes([shape])
        frames = np.array([sum(level.frames for level in shape.seen)])
        return Sections(
            target=np.array([shape.target]),
            context=context,
            pixels=pixels,
            times=np.ones(1, dtype=np.int64),
            frames=frames,
            shapes=(shape,) if self.kind == PACKED else (),
        )

    def point(self, timeline: Timeline, throughput: Throughput) -> Point:
        sections = self.model.sections(self.kind, timeline)
        rest, attention = self.work(sections)
        time, at = throughput.seconds(rest, attention), sections.dearest
        return Point(
            seconds=timeline.seconds,
            sections=sections.count,
            context=int(sections.context[at]),
            operations=float(rest[at] + attention[at]),
            memory=self.memory(sections),
            time=float(time[at]),
            total_operations=float(((rest + attention) * sections.times).sum()),
            total_time=float((time * sections.times).sum()),
        )
