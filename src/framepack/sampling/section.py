"""One section from noise to latents.

Legend: B batch, C latent channels, T target frames, h w latent grid, L prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from framepack.conditioning.embeds import Conditioning
from framepack.packing.context import PackedContext
from framepack.planning.method import Method
from framepack.sampling.flow import to_data
from framepack.sampling.solvers import Solver


class Model(Protocol):
    """What sampling asks of a transformer."""

    config: object

    def __call__(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        positions: torch.Tensor | None,
        context: PackedContext,
    ) -> torch.Tensor: ...

    def cache_context(self, name: str): ...


def context_timestep(method: Method) -> float | None:
    """The timestep that a method gives its context: 0 as for clean frames, or None for the noisy frames'."""
    return 0.0 if method.history_timestep == "zero" else None


@torch.inference_mode()
def sample_section(
    model: Model,
    *,
    noise: torch.Tensor,
    positions: torch.Tensor,
    context: PackedContext,
    prompt: Conditioning,
    negative: Conditioning | None,
    guidance: float,
    sigmas: torch.Tensor,
    solver: Solver,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> torch.Tensor:
    """Denoise the target frames.

    Args:
        noise: (B, C, T, h, w), float32.
        positions: time index of each target frame (T,).
        context: already on the model's device and dtype.
        prompt, negative: what steers it; ``negative`` is read only where guidance is not 1.
        guidance: classifier-free guidance scale (Ho and Salimans 2022); 1 means none and one call a step.
        sigmas: noise levels, see ``make_sigmas``.
        on_step: told (finished steps, all steps) after each step; an exception from it ends the section.

    Returns:
        clean latents (B, C, T, h, w), float32.
    """
    prediction = model.config.prediction  # type: ignore[attr-defined]
    steps = len(sigmas) - 1
    branches = {"cond": prompt}
    if guidance != 1.0:
        assert negative is not None, "guidance needs a negative embedding"
        branches["uncond"] = negative

    def denoise(x: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
        timestep = torch.full((x.shape[0],), sigma * 1000.0, device=x.device)
        data = []
        for name, conditioning in branches.items():
            with model.cache_context(name):
                output = model(x.to(conditioning.prompt.dtype), timestep, conditioning, positions, context)
            data.append(to_data(output.float(), x, sigma, prediction))
        on_step(index + 1, steps)
        return data[0] if len(data) == 1 else data[1] + guidance * (data[0] - data[1])

    return solver(denoise, noise, sigmas)
