"""Flow matching: noise levels, their shift, and what a network's output means.

x_sigma = (1 - sigma) * data + sigma * noise, sigma from 1 (noise) to 0 (data); the flow is
noise - data.
"""

from __future__ import annotations

import torch


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """sigma' = shift / (shift + 1/sigma - 1), written so that sigma = 0 stays 0."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def make_sigmas(steps: int, shift: float) -> torch.Tensor:
    """``steps`` + 1 noise levels from 1 to 0, float64."""
    return shift_sigmas(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def to_data(
    output: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor | float, prediction: str
) -> torch.Tensor:
    """The clean latent that a network's output stands for; ``prediction`` is ``flow`` or ``sample``."""
    if prediction == "sample":
        return output
    assert prediction == "flow", prediction
    return x - sigma * output
