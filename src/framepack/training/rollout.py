"""Whole videos made in memory, many at a time, or some of their sections, for checks and for training.

Legend: B videos of one plan, C latent channels, F latent frames of the timeline, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError
from framepack.generation.settle import settle
from framepack.models.shift import Shift
from framepack.packing.schedule import Kernel
from framepack.planning.method import Method
from framepack.planning.planners import Plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline
from framepack.sampling.grids import section_sigmas
from framepack.sampling.section import Model, sample_section
from framepack.sampling.shown import history_generator, shown, without_history
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

    Raises:
        InputError: a method that ranks its history by its latents, and more than one video.
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
        timeline=plan.timeline,
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
    timeline: Timeline | None = None,
) -> None:
    """Sample some sections of a plan, each into ``held``, where what it sees must be; else as ``rollout``.

    Args:
        timeline: of the plan, for methods that rank their history by its latents.

    Raises:
        InputError: such a method, and more than one video.
    """
    batch, channels, h, w = shape
    aligned = bool(model.config.aligned)  # type: ignore[attr-defined]
    if method.importance.kind != "time" and batch > 1:
        raise InputError(
            f"method '{method}' ranks the history of each video by itself: make one at a time, not {batch}"
        )

    def fetch(frames: Sequence[int]) -> torch.Tensor:
        return torch.stack([held[f] for f in frames], dim=2)

    for planned in sections:
        section = planned if timeline is None else settle(planned, method, timeline, fetch)
        own = seed * 100_003 + section.index
        noise = torch.randn(
            batch, channels, len(section.frames), h, w, generator=torch.Generator().manual_seed(own)
        )
        context = shown(
            section,
            method,
            fetch,
            noise,
            aligned=aligned,
            generator=history_generator(own),
            centroids=centroids,
        ).to(device, dtype)
        latents = sample_section(
            model,
            noise=noise.to(device),
            positions=torch.tensor(section.positions),
            context=context,
            prompt=prompts(section).to(device, dtype),
            negative=None if negative is None else negative.to(device, dtype),
            guidance=guidance,
            sigmas=section_sigmas(steps, shift, noise.shape[2:], base_kernel),
            solver=solver_named(solver),
            history_guidance=method.history_guidance,
            without=without_history(context, method),
        ).cpu()
        for column, frame in enumerate(section.frames):
            held[frame] = latents[:, :, column]
