"""One training batch: what the model is shown, and the loss.

Legend: B clips of one draw, C latent channels, T target frames, h w latent grid, L prompt slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from framepack.conditioning.embeds import Conditioning
from framepack.conditioning.words import WordConditioner
from framepack.data.latents import LatentCache, send
from framepack.models.shift import shift_for
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import PackedContext
from framepack.planning.sections import Section
from framepack.sampling.flow import shift_sigmas, to_data
from framepack.sampling.grids import noisy_tokens
from framepack.sampling.shown import without_history
from framepack.training.config import ObjectiveConfig
from framepack.training.corruption import MakeHistory, corrupt, needed, noise_from, seen
from framepack.training.draw import Draw


@dataclass(frozen=True)
class Batch:
    """target (B, C, T, h, w), prompt rows (B, L), and the context, on one device; positions (T,)."""

    target: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    context: PackedContext


def make_batch(
    rng: np.random.Generator,
    draw: Draw,
    size: int,
    cache: LatentCache,
    conditioner: WordConditioner,
    config: ObjectiveConfig,
    channel_std: torch.Tensor,
    *,
    make_history: MakeHistory | None = None,
    centroids: torch.Tensor | None = None,
) -> Batch:
    """Lay one section over ``size`` random clips, each from a random offset.

    Args:
        channel_std: (C,), on the cache's device, for noise in proportion to it.
        make_history: makes frames of the history that real latents would fill; no noise is added to them.
        centroids: (K, C), on the cache's device, for methods with discretised history.
    """
    section, device = draw.section, cache.device
    clips = cache.draw(rng, size)
    offsets = cache.offsets(rng, clips, draw.frames)

    def read(frames: Sequence[int]) -> torch.Tensor:
        return cache.latents(clips, [[o + f for f in frames] for o in offsets])

    target = read(section.frames)
    order = needed(section)
    history = read(order) if order else target[:, :, :0]
    history = corrupt(rng, history, config.corruption, channel_std)
    # A list of indices would have to travel to a GPU, and be waited for.
    held = dict(zip(order, history.unbind(2), strict=True))
    if make_history is not None:

        def prompts(made: Section) -> Conditioning:
            words = [
                cache.scene(clip).words(offset + made.frames[0], offset + made.frames[-1] + 1)
                for clip, offset in zip(clips, offsets, strict=True)
            ]
            rows = torch.tensor([conditioner.rows_of(w) for w in words])
            return Conditioning(prompt=conditioner(send(rows, device)))

        held |= make_history(draw, read, prompts)

    def fetch(frames: Sequence[int]) -> torch.Tensor:
        return torch.stack([held[f] for f in frames], dim=2)

    context = seen(rng, draw, fetch, target, config.corruption, aligned=True, centroids=centroids)
    if config.drop_history and rng.random() < config.drop_history:
        context = without_history(context, draw.method)

    first, last = section.frames[0], section.frames[-1]
    rows = []
    for clip, offset in zip(clips, offsets, strict=True):
        words = cache.scene(clip).words(offset + first, offset + last + 1)
        keep = rng.random(len(words)) >= config.drop_word
        if rng.random() < config.drop_prompt:
            keep[:] = False
        rows.append(conditioner.rows_of(tuple(w for w, k in zip(words, keep, strict=True) if k)))
    return Batch(target, send(torch.tensor(rows), device), torch.tensor(section.positions), context)


def loss_of(
    rng: np.random.Generator,
    batch: Batch,
    model: PackedWanTransformer3DModel,
    conditioner: WordConditioner,
    config: ObjectiveConfig,
) -> torch.Tensor:
    """Weighted squared error of the predicted clean latent, logit-normal noise levels with a flow shift."""
    target, dtype = batch.target, model.patch_embedding.weight.dtype
    device = target.device
    generator = noise_from(rng, device)
    sigma = torch.sigmoid(torch.randn(len(target), generator=generator, device=device))
    tokens = noisy_tokens(target.shape[2:], model.config.patch_size)
    sigma = shift_sigmas(sigma, shift_for(config.shift, tokens))
    noise = torch.randn(target.shape, generator=generator, device=device)
    level = sigma[:, None, None, None, None]
    noisy = (1 - level) * target + level * noise
    prompt = conditioner(batch.rows).to(dtype)
    context = batch.context.to(device, dtype)
    output = model(noisy.to(dtype), sigma * 1000, Conditioning(prompt=prompt), batch.positions, context)
    data = to_data(output.float(), noisy, level, model.config.prediction)
    weight = 1 / level.clamp(min=config.floor) ** 2
    return (weight * (data - target) ** 2).mean()
