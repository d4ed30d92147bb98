"""One section from noise to latents.

Legend: B batch, C latent channels, T target frames, h w latent grid, L prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from framepack.conditioning.embeds import Conditioning
from framepack.models.attention import attention_for
from framepack.packing.context import PackedContext
from framepack.sampling.flow import to_data
from framepack.sampling.guidance import Guide, classifier_free
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
    guide: Guide = classifier_free,
    history_guidance: float = 1.0,
    without: PackedContext | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
    attention: str | None = None,
) -> torch.Tensor:
    """Denoise the target frames.

    Args:
        noise: (B, C, T, h, w), float32.
        positions: time index of each target frame (T,).
        context: already on the model's device and dtype.
        prompt, negative: what steers it; ``negative`` is read only where guidance is not 1.
        guidance: scale of guidance; 1 means none and one call a step. guide: its rule.
        history_guidance: scale w of guidance on the history (Song and others 2025, "History-Guided Video
            Diffusion"), whose (w - 1) (data - data without history) is added; 1 means none.
        without: the context without history, read only where that is not 1.
        sigmas: noise levels, see ``section_sigmas``.
        on_step: told (finished steps, all steps) after each step; an exception from it ends the section.
        attention: as ``attention_for`` takes it.

    Returns:
        clean latents (B, C, T, h, w), float32.
    """
    prediction = model.config.prediction  # type: ignore[attr-defined]
    if getattr(model, "is_cache_enabled", False):
        model._reset_stateful_cache()  # type: ignore[attr-defined]  # of diffusers: it holds the section before
    steps = len(sigmas) - 1
    branches = _branches(prompt, negative if guidance != 1.0 else None, noise.device, context)
    # Before the first section there is nothing to be guided by.
    on_history = history_guidance != 1.0 and bool(context.levels)
    if on_history:
        assert without is not None, "guidance on history needs the context without it"
        branches.append(("without", prompt, without))
    branches = [(name, conditioning, seen.remembering()) for name, conditioning, seen in branches]

    def denoise(x: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
        data: list[torch.Tensor] = []
        for name, conditioning, seen in branches:
            dtype = conditioning.prompt.dtype
            copies = len(conditioning.prompt) // len(x)
            noisy = x.repeat(copies, 1, 1, 1, 1)
            timestep = torch.full((len(noisy),), sigma * 1000.0, device=x.device)
            with model.cache_context(name), attention_for(x.device, dtype, attention):
                output = model(noisy.to(dtype), timestep, conditioning, positions, seen)
            data += to_data(output.float(), noisy, sigma, prediction).chunk(copies)
        on_step(index + 1, steps)
        extra = (history_guidance - 1) * (data[0] - data.pop()) if on_history else None
        guided = data[0] if len(data) == 1 else guide(data[0], data[1], x, sigma, guidance)
        return guided if extra is None else guided + extra

    return solver(denoise, noise, sigmas)


def _branches(
    prompt: Conditioning, negative: Conditioning | None, device: torch.device, context: PackedContext
) -> list[tuple[str, Conditioning, PackedContext]]:
    """The calls of one step: name, what steers it, context.

    A GPU is full with one branch, and its memory is short. On a CPU both in one call are faster than one
    after the other.
    """
    if negative is None:
        return [("cond", prompt, context)]
    both = prompt.joined(negative) if device.type == "cpu" else None
    if both is not None:
        return [("both", both, context.repeated(2))]
    return [("cond", prompt, context), ("uncond", negative, context)]
