"""Guidance: the data that the two branches of a step come to.

Legend: B batch; data and x are (B, C, T, h, w), float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Guide = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, float], torch.Tensor]
"""(data with the prompt, data with the negative one, x, sigma, scale) -> data."""


def classifier_free(
    cond: torch.Tensor, uncond: torch.Tensor, x: torch.Tensor, sigma: float, scale: float
) -> torch.Tensor:
    """Ho and Salimans 2022. The same for data as for flows, of which it is linear."""
    return uncond + scale * (cond - uncond)


def cfg_zero_star(
    cond: torch.Tensor, uncond: torch.Tensor, x: torch.Tensor, sigma: float, scale: float
) -> torch.Tensor:
    """Fan and others 2025 (CFG-Zero*): the unconditional flow is first scaled to lie nearest the other.

    As `optimized_scale` of diffusers' HeliosPyramidPipeline has it, for each video of the batch.
    """
    flow, other = (x - cond) / sigma, (x - uncond) / sigma
    dot, square = ((flow * other).flatten(1).sum(1), (other * other).flatten(1).sum(1))
    other = other * (dot / (square + 1e-8)).view(-1, 1, 1, 1, 1)
    return x - sigma * (other + scale * (flow - other))
