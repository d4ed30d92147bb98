"""Sections of a model whose weights are here, carried out: timed, weighed and counted.

History is noise, which costs what any history costs.

Legend: B samples, C latent channels, N frames, h w latent grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from framepack.evaluation.scale.sections import shape_of, whole
from framepack.models.loading import load_transformer
from framepack.packing.schedule import Grid
from framepack.planning.method import Method
from framepack.planning.planners import plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline
from framepack.resources.hollow import Architecture
from framepack.resources.operations import operation_counter
from framepack.resources.section_cost import Shape, steering
from framepack.resources.tally import meter_for, tensors_in
from framepack.sampling.grids import section_sigmas
from framepack.sampling.section import sample_section
from framepack.sampling.shown import shown
from framepack.sampling.solvers import euler

REPEATS = 3
"""What else the machine does only adds time: the quickest go is nearest to what a section takes."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One section that was carried out.

    history: sections before it. seconds_of_video: from the start of the video to its end.
    context: tokens. operations: of all steps, counted as they ran. seconds: of all steps, by the quickest of
    a few goes at ``steps_timed`` of them. peak: most bytes held at once.
    """

    kind: str
    history: int
    shape: Shape
    seconds_of_video: float
    context: int
    operations: float
    seconds: float
    steps_timed: int
    peak: int


class Measuring:
    """A model in memory, and how its sections are made.

    Args:
        steps: of a section. limit: seconds that one section may be timed for; of dearer ones fewer steps
            are, or a single one once.
    """

    def __init__(
        self,
        architecture: Architecture,
        grid: Grid,
        *,
        device: torch.device,
        dtype: torch.dtype,
        steps: int,
        guidance: float,
        limit: float,
    ) -> None:
        assert architecture.source is not None, architecture.spec.name
        self.architecture, self.spec, self.grid = architecture, architecture.spec, grid
        self.device, self.dtype, self.steps, self.guidance = device, dtype, steps, guidance
        self.limit = limit
        self.model = load_transformer(architecture.source.complete(), dtype).to(device)
        self.model.add_kernels([self.spec.base_kernel])

    def measure(
        self,
        kinds: dict[str, Method],
        timeline: Timeline,
        histories: Sequence[int],
        tell: Callable[[str], None],
    ) -> list[Measured]:
        """By kind of context, a section after each number of sections."""
        found = []
        for history in histories:
            for kind, method in kinds.items():
                video = whole(timeline, method.section_size, history + 1)
                section = plan(video, method).sections[-1]
                found.append(self._measured(kind, method, section, history, video))
                tell(f"{kind}, {history} sections of history: {found[-1].seconds:.2f} s a section")
        return found

    def _measured(
        self, kind: str, method: Method, section: Section, history: int, video: Timeline
    ) -> Measured:
        run = self._ready(section, method)
        with meter_for(self.device, tensors_in(self.model)) as meter, operation_counter() as counter:
            run(1)
        first, peak = counter.get_total_flops(), meter.peak
        with operation_counter() as counter:
            run(2)
        later = counter.get_total_flops() - first
        seconds = self._timed(run, 1)
        timed = min(self.steps, max(1, int(self.limit / REPEATS / seconds)))
        if REPEATS * seconds < self.limit:
            seconds = min(self._timed(run, timed) for _ in range(REPEATS)) / timed
        return Measured(
            kind=kind,
            history=history,
            shape=shape_of(section),
            seconds_of_video=video.seconds,
            context=section.tokens(self.grid),
            operations=first + (self.steps - 1) * later,
            seconds=seconds * self.steps,
            steps_timed=timed,
            peak=peak,
        )

    def _ready(self, section: Section, method: Method) -> Callable[[int], Any]:
        """The section with all it needs; called with a number of steps it is denoised for as many."""
        spec, config = self.spec, self.model.config
        generator = torch.Generator().manual_seed(0)

        def latents(count: int) -> torch.Tensor:
            return torch.randn(1, spec.latent_channels, count, *self.grid, generator=generator)

        def embedding(*sizes: int) -> torch.Tensor:
            return torch.randn(1, *sizes, generator=generator).to(self.device, self.dtype)

        noise = latents(len(section.frames))
        context = shown(
            section,
            method,
            lambda frames: latents(len(frames)),
            noise,
            aligned=config.aligned,
            generator=generator,
        ).to(self.device, self.dtype)
        prompt, negative = (steering(self.architecture, config, embedding) for _ in range(2))
        sigmas = section_sigmas(self.steps, spec.shift, noise.shape[2:], spec.base_kernel, spec.sigmas)

        def run(steps: int) -> torch.Tensor:
            return sample_section(
                self.model,
                noise=noise.to(self.device),
                positions=torch.tensor(section.positions),
                context=context,
                prompt=prompt,
                negative=negative,
                guidance=self.guidance,
                sigmas=sigmas[: steps + 1],
                solver=euler,
            )

        return run

    def _timed(self, run: Callable[[int], Any], steps: int) -> float:
        self._wait()
        begun = time.perf_counter()
        run(steps)
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
