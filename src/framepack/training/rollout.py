"""Whole videos made in memory, many at a time, or some of their sections, for checks and for training.

Legend: B videos of one plan, C latent channels, F latent frames of the timeline, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from framepack.conditioning.embeds import Conditioning
from framepack.models.shift import Shift
from framepack.packing.context import pack
from framepack.packing.discretisation import discretized
from framepack.packing.schedule import Kernel
from framepack.planning.method import Method
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
    shift: Shift,
    base_kernel: Kernel,
    solver: str = "euler",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    centroids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample every section of a plan for B videos at once.

    Args:
        known: latents (B, C, h, w) by timeline index.
        prompts: what steers a section. negative: the same, for guidance.
        shape: (B, C, h, w).
        shift: of the noise levels; a balanced one counts tokens of ``base_kernel``.
        seed: of the noise; section i draws from (seed, i).
        centroids: (K, C), for methods with discretised history.

    Returns:
        latents (B, C, F, h, w), float32, on the CPU.
    """
    held = dict(known)
    fill(
        model,
        plan.method,
        plan.sections,
        held,
        prompts,
        negative,
        shape=shape,
        seed=seed,
        steps=steps,
        guidance=guidance,
        shift=shift,
        base_kernel=base_kernel,
        solver=solver,
        device=device,
        dtype=dtype,
        centroids=centroids,
    )
    return torch.stack([held[f] for f in range(plan.timeline.latent_frames)], dim=2)


def fill(
    model: Model,
    method: Method,
    sections: Sequence[Section],
    held: dict[int, torch.Tensor],
    prompts: Callable[[Section], Conditioning],
    negative: Conditioning | None,
    *,
    shape: tuple[int, int, int, int],
    seed: int,
    steps: int,
    guidance: float,
    shift: Shift,
    base_kernel: Kernel,
    solver: str = "euler",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    centroids: torch.Tensor | None = None,
) -> None:
    """Sample some sections of a plan, each into ``held``, where what it sees must be; else as ``rollout``."""
    batch, channels, h, w = shape
    aligned = bool(model.config.aligned)  # type: ignore[attr-defined]
    for section in sections:
        generator = torch.Generator().manual_seed(seed * 100_003 + section.index)
        noise = torch.randn(batch, channels, len(section.frames), h, w, generator=generator)

        def fetch(frames: Sequence[int]) -> torch.Tensor:
            return torch.stack([held[f] for f in frames], dim=2)

        context = pack(section, fetch, noise, aligned=aligned, timestep=context_timestep(method))
        if method.discretized:
            context = discretized(context, section, centroids)
        latents = sample_section(
            model,
            noise=noise.to(device),
            positions=torch.tensor(section.positions),
            context=context.to(device, dtype),
            prompt=prompts(section).to(device, dtype),
            negative=None if negative is None else negative.to(device, dtype),
            guidance=guidance,
            sigmas=section_sigmas(steps, shift, noise.shape[2:], base_kernel),
            solver=solver_named(solver),
        ).cpu()
        for column, frame in enumerate(section.frames):
            held[frame] = latents[:, :, column]
