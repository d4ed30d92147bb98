"""History of few codewords, the ``+D`` of the notation.

A codebook has K codewords, found by k-means over latent pixels of the training data. Every pixel of the
history is replaced by the nearest one, in training and in generation, so that the model is shown the same
few values whether the history is real or has drifted (Zhang and others 2025, "history discretization").
K = 1 leaves no memory and no drift; a large K changes nothing.

Legend: B batch, C latent channels, N frames of one level, h w latent grid, K codewords.
"""

from __future__ import annotations

import torch

from framepack.packing.context import PackedContext
from framepack.packing.history import RoleSection, changed

_CHUNK = 2**24
"""Distances that are held at once."""


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
    """The packed context of a section with its history discretised, see ``packing.history``.

    Args:
        centroids: (K, C); None is for models that have no codebook, whose methods must be refused before.
    """
    assert centroids is not None, "discretised history needs a codebook"
    return changed(context, section, lambda latents, frames: quantised(latents, centroids))
