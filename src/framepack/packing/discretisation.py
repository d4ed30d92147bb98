"""History of few codewords, the ``+D`` of the notation.

A codebook has K codewords, found by k-means over latent pixels of the training data. Every pixel of the
history is replaced by the nearest one, in training and in generation, so that the model is shown the same
few values whether the history is real or has drifted (Zhang and others 2025, "history discretization").
K = 1 leaves no memory and no drift; a large K changes nothing.

What a method pins, its levels of role ``start`` and ``end``, is shown as it is: those frames are not what
drifts. The channels beside the target show history, and are discretised.

Legend: B batch, C latent channels, N frames of one level, T target frames, h w latent grid, K codewords.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from framepack.packing.context import LevelPlan, PackedContext

ROLES = ("history", "tail")
"""Roles of the levels that are discretised."""
_CHUNK = 2**24
"""Distances that are held at once."""


class RoleLevel(LevelPlan, Protocol):
    @property
    def role(self) -> str: ...


class RoleSection(Protocol):
    @property
    def context(self) -> Sequence[RoleLevel]: ...


def codewords(pixels: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index (n,) of the centroid (K, C) nearest to each pixel (n, C), in float32; the first of equals."""
    points, centres = pixels.float(), centroids.to(pixels.device, torch.float32)
    half = centres.square().sum(1) / 2
    parts = points.split(max(1, _CHUNK // len(centres)))
    return torch.cat([(half - part @ centres.T).argmin(1) for part in parts])


def quantised(latents: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, N, h, w) with every pixel replaced by the nearest of the centroids (K, C)."""
    pixels = latents.movedim(1, -1)
    rows = codewords(pixels.reshape(-1, pixels.shape[-1]), centroids)
    return centroids.to(latents)[rows].view(pixels.shape).movedim(-1, 1)


def discretized(
    context: PackedContext, section: RoleSection, centroids: torch.Tensor | None
) -> PackedContext:
    """The packed context of a section with its history discretised.

    Frames that are absent stay zeros. A tail is discretised as it was packed, after averaging.

    Args:
        centroids: (K, C); None is for models that have no codebook, whose methods must be refused before.
    """
    assert centroids is not None, "discretised history needs a codebook"
    levels = []
    for level, plan in zip(context.levels, section.context, strict=True):
        if plan.role in ROLES:
            latents = quantised(level.latents, centroids)
            absent = [False] if plan.mean else [frame is None for frame in plan.frames]
            if any(absent):
                latents[:, :, torch.tensor(absent, device=latents.device)] = 0
            level = replace(level, latents=latents)
        levels.append(level)
    aligned = context.aligned
    if aligned is not None:
        channels = centroids.shape[1]
        *sides, flags = aligned.split([channels, channels, 2], dim=1)
        # A flag says whether there is anything.
        sides = [
            quantised(side, centroids) * flag for side, flag in zip(sides, flags.split(1, 1), strict=True)
        ]
        aligned = torch.cat([*sides, flags], dim=1)
    return replace(context, levels=tuple(levels), aligned=aligned)
