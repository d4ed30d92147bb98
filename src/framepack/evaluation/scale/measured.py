"""Sections of a model whose weights are here, carried out: timed, weighed and counted.

History is noise, which costs what any history costs.

Legend: B samples, C latent channels, N frames, h w latent grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from framepack.models.loading import load_transformer
from framepack.packing.schedule import Grid
from framepack.planning.method import Method
from framepack.planning.planners import plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline
from framepack.resources.hollow import Architecture
from framepack.resources.operations import operation_counter
from framepack.resources.section_cost import Shape, steering
from framepack.resources.sections import shape_of, whole
from framepack.resources.tally import meter_for, tensors_in
from framepack.sampling.grids import section_sigmas
from framepack.sampling.section import sample_section
from framepack.sampling.shown import shown
from framepack.sampling.solvers import euler

REPEATS = 3
"""What else the machine does only adds time: the quickest go is nearest to what a section takes."""


Run = Callable[[int], Any]
"""Denoises one section for so many steps."""


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
            are, and one whose step alone takes longer is not carried out again.
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
        """By kind of context, a section after each number of sections.

        First each is carried out once, weighed and counted. Those that are cheap enough are then timed in
        rounds, so that what else the machine does for a while cannot fall on all goes of one.
        """
        found: list[tuple[Measured, Run]] = []
        for history in sorted(histories):
            for kind, method in kinds.items():
                video = whole(timeline, method.section_size, history + 1)
                section = plan(video, method).sections[-1]
                found.append(self._weighed(kind, method, section, history, video))
                tell(f"{kind} after {history} sections: {found[-1][0].seconds / self.steps:.2f} s a step")
        for _ in range(REPEATS):
            found = [(self._timed(measured, run), run) for measured, run in found]
        tell("timed")
        return [measured for measured, _ in found]

    def _weighed(
        self, kind: str, method: Method, section: Section, history: int, video: Timeline
    ) -> tuple[Measured, Run]:
        run = self._ready(section, method)
        with meter_for(self.device, tensors_in(self.model)) as meter, operation_counter() as counter:
            once = self._seconds(run, 1)
        first = later = counter.get_total_flops()
        if self.model.config.isolated_history:
            with operation_counter() as counter:
                run(2)
            later = counter.get_total_flops() - first
        measured = Measured(
            kind=kind,
            history=history,
            shape=shape_of(section),
            seconds_of_video=video.seconds,
            context=section.tokens(self.grid),
            operations=first + (self.steps - 1) * later,
            seconds=once * self.steps,
            steps_timed=1,
            peak=meter.peak,
        )
        return measured, run

    def _timed(self, measured: Measured, run: Run) -> Measured:
        """The same with the time of another go, if that is quicker; of the dearest the first go stands."""
        once = measured.seconds / self.steps
        steps = min(self.steps, max(1, int(self.limit / REPEATS / once)))
        if once > self.limit:
            return measured
        seconds = self._seconds(run, steps) * self.steps / steps
        if seconds >= measured.seconds:
            return measured
        return replace(measured, seconds=seconds, steps_timed=steps)

    def _ready(self, section: Section, method: Method) -> Run:
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

    def _seconds(self, run: Run, steps: int) -> float:
        self._wait()
        begun = time.perf_counter()
        run(steps)
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
