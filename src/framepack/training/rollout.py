"""Whole videos made in memory, many at a time, for checks.

Legend: B videos of one plan, C latent channels, F latent frames of the timeline, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from framepack.conditioning.embeds import Conditioning
from framepack.packing.context import pack
from framepack.packing.schedule import Kernel
from framepack.planning.planners import Plan
from framepack.planning.sections import Section
from framepack.sampling.grids import section_sigmas
from framepack.sampling.section import Model, context_timestep, sample_section
from framepack.sampling.solvers import solver_named


def rollout(
    model: Model,
    plan: Plan,
    known: dict[int, torch.Tensor],
    prompts: Callable[[Section], Conditioning],
    negative: Conditioning,
    *,
    shape: tuple[int, int, int, int],
    seed: int,
    steps: int,
    guidance: float,
    shift: float | None,
    base_kernel: Kernel,
    solver: str = "euler",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Sample every section of a plan for B videos at once.

    Args:
        known: latents (B, C, h, w) by timeline index.
        prompts: what steers a section. negative: the same, for guidance.
        shape: (B, C, h, w).
        shift: a fixed flow shift; None for the balanced rule on tokens of ``base_kernel``.
        seed: of the noise; section i draws from (seed, i).

    Returns:
        latents (B, C, F, h, w), float32, on the CPU.
    """
    batch, channels, h, w = shape
    held = dict(known)
    aligned = bool(model.config.aligned)  # type: ignore[attr-defined]
    for section in plan.sections:
        generator = torch.Generator().manual_seed(seed * 100_003 + section.index)
        noise = torch.randn(batch, channels, len(section.frames), h, w, generator=generator)

        def fetch(frames: Sequence[int]) -> torch.Tensor:
            return torch.stack([held[f] for f in frames], dim=2)

        context = pack(section, fetch, noise, aligned=aligned, timestep=context_timestep(plan.method))
        latents = sample_section(
            model,
            noise=noise.to(device),
            positions=torch.tensor(section.positions),
            context=context.to(device, dtype),
            prompt=prompts(section).to(device, dtype),
            negative=negative.to(device, dtype),
            guidance=guidance,
            sigmas=section_sigmas(steps, shift, noise.shape[2:], base_kernel),
            solver=solver_named(solver),
        ).cpu()
        for column, frame in enumerate(section.frames):
            held[frame] = latents[:, :, column]
    return torch.stack([held[f] for f in range(plan.timeline.latent_frames)], dim=2)
