"""History with noise that the model is told of (Chen and others 2024, "Diffusion Forcing").

A frame is shown on the path of the flow, (1 - s) x + s * noise, at its sigma s. The same frame has the same
noise wherever it stands in a section, beside the target too. Which frames have noise, see
``packing.history``.

Legend: B batch, C latent channels, N frames of one level, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from framepack.packing.context import PackedContext
from framepack.packing.history import ROLES, RoleSection, changed


def noisy(
    context: PackedContext,
    section: RoleSection,
    sigmas: Iterator[torch.Tensor],
    generator: torch.Generator,
) -> PackedContext:
    """The packed context of a section with noise on its history.

    Args:
        sigmas: (B,) each, asked once for every frame, and once for a tail.
        generator: of the noise, on the device of the context.
    """
    drawn: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def draw(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(like.shape, generator=generator, device=like.device)
        return next(sigmas).view(-1, 1, 1, 1, 1), noise.to(like.dtype)

    def shown(latents: torch.Tensor, frame: int) -> torch.Tensor:
        if frame not in drawn:
            drawn[frame] = draw(latents)
        return _mixed(latents, *drawn[frame])

    def change(latents: torch.Tensor, frames: Sequence[int | None]) -> torch.Tensor:
        if all(frame is None for frame in frames):  # a tail
            return _mixed(latents, *draw(latents))
        columns = [
            column if frame is None else shown(column, frame)
            for column, frame in zip(latents.split(1, dim=2), frames, strict=True)
        ]
        return torch.cat(columns, dim=2)

    return changed(context, section, change)


def told(context: PackedContext, section: RoleSection, sigma: torch.Tensor) -> PackedContext:
    """The context with the timesteps of history at ``sigma`` (B,), and of what is pinned at 0."""
    levels = tuple(
        replace(level, timestep=sigma * 1000) if plan.role in ROLES else level
        for level, plan in zip(context.levels, section.context, strict=True)
    )
    return replace(context, levels=levels, timestep=0.0)


def _mixed(clean: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (1 - sigma) * clean + sigma * noise
