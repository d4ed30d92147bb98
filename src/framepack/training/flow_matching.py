"""One draw on cached clips: what a packed model of any family is shown, and the loss.

Legend: B clips of one draw, C latent channels, T target frames, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from framepack.conditioning.embeds import Conditioning
from framepack.data.reader import EncodedClips
from framepack.models.shift import shift_for
from framepack.packing.context import PackedContext
from framepack.packing.schedule import Kernel
from framepack.sampling.flow import shift_sigmas
from framepack.sampling.grids import noisy_tokens
from framepack.sampling.shown import without_history
from framepack.training.corruption import MakeHistory, corrupt, needed, noise_from, seen
from framepack.training.draw import Draw
from framepack.training.finetune_config import FlowConfig


@dataclass(frozen=True)
class Shown:
    """target (B, C, T, h, w), what steers it, and the context, on one device; positions (T,)."""

    target: torch.Tensor
    conditioning: Conditioning
    positions: torch.Tensor
    context: PackedContext


def show(
    rng: np.random.Generator,
    draw: Draw,
    size: int,
    clips: EncodedClips,
    config: FlowConfig,
    spread: torch.Tensor,
    *,
    aligned: bool,
    from_start: bool,
    make_history: MakeHistory | None = None,
    centroids: torch.Tensor | None = None,
) -> Shown:
    """Lay one section over ``size`` random clips.

    Args:
        spread: standard deviation of each channel (C,), on the clips' device.
        aligned: see `PackedContext`.
        from_start: plans begin where clips do, as they must where a codec's first latent is one frame and
            its others several; else anywhere.
        make_history: makes frames of the history that real latents would fill; no noise is added to them.
        centroids: (K, C), on the clips' device, for methods with discretised history.

    Raises:
        InputError: no clip is as long as the draw's plan.
    """
    section = draw.section
    chosen = clips.draw(rng, size, draw.frames)
    spare = clips.lengths[chosen] - draw.frames
    offsets = [0] * size if from_start else rng.integers(0, spare + 1).tolist()

    def read(frames: Sequence[int]) -> torch.Tensor:
        return clips.latents(chosen, [[offset + f for f in frames] for offset in offsets])

    target = read(section.frames)
    order = needed(section)
    history = read(order) if order else target[:, :, :0]
    history = corrupt(rng, history, config.corruption, spread)
    held = dict(zip(order, history.unbind(2), strict=True))
    # Image tokens are of the start frame, where the plan has one.
    image = 0 in draw.known and rng.random() >= config.drop_image
    steered = clips.conditioning(chosen, image=image)
    if make_history is not None:
        held |= make_history(draw, read, lambda made: replace(steered, guidance=config.guidance))

    def fetch(frames: Sequence[int]) -> torch.Tensor:
        return torch.stack([held[f] for f in frames], dim=2)

    context = seen(rng, draw, fetch, target, config.corruption, aligned=aligned, centroids=centroids)
    if rng.random() < config.drop_history:
        context = without_history(context, draw.method)
    keep = (rng.random(size) >= config.drop_prompt).tolist()
    if not all(keep):
        steered = clips.conditioning(chosen, keep, image=image)
    steered = replace(steered, guidance=config.guidance)
    return Shown(target, steered, torch.tensor(section.positions), context)


def noise_levels(
    rng: np.random.Generator, config: FlowConfig, target: torch.Tensor, base_kernel: Kernel
) -> torch.Tensor:
    """Sigma of each sample, (B,), for a target (B, C, T, h, w) in tokens of ``base_kernel``.

    The shift is that of generation; logit-normal times are those of Esser and others 2024 (location 0,
    scale 1).
    """
    generator = noise_from(rng, target.device)
    if config.times == "uniform":
        sigma = torch.rand(len(target), generator=generator, device=target.device)
    else:
        sigma = torch.sigmoid(torch.randn(len(target), generator=generator, device=target.device))
    return shift_sigmas(sigma, shift_for(config.shift, noisy_tokens(target.shape[2:], base_kernel)))


def flow_loss(
    rng: np.random.Generator,
    shown: Shown,
    transformer: Any,
    config: FlowConfig,
    base_kernel: Kernel,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Mean squared error of the flow, noise minus data; a prediction of the data is first made into one."""
    target = shown.target
    device = target.device
    sigma = noise_levels(rng, config, target, base_kernel)
    noise = torch.randn(target.shape, generator=noise_from(rng, device), device=device)
    level = sigma[:, None, None, None, None]
    noisy = (1 - level) * target + level * noise
    output = transformer(
        noisy.to(dtype),
        sigma * 1000,
        shown.conditioning.to(device, dtype),
        shown.positions,
        shown.context.to(device, dtype),
    ).float()
    if transformer.config.prediction == "flow":
        error = output - (noise - target)
    else:
        error = (output - target) / level.clamp(min=config.floor)
    return error.square().mean()
