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
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import PackedContext, pack
from framepack.sampling.flow import shift_sigmas, to_data
from framepack.sampling.section import context_timestep
from framepack.training.config import ObjectiveConfig
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
) -> Batch:
    """Lay one section over ``size`` random clips, each from a random offset.

    The context is corrupted as a generator's own history would be: noise in proportion to each
    channel's spread (``channel_std`` (C,), on the cache's device), of a random strength for half of the
    samples.
    """
    section, device = draw.section, cache.device
    clips = cache.draw(rng, size)
    offsets = rng.integers(0, cache.config.frames - draw.frames + 1, size).tolist()

    def read(frames: Sequence[int]) -> torch.Tensor:
        return cache.latents(clips, [[o + f for f in frames] for o in offsets])

    target = read(section.frames)
    seen = {f for level in section.context for f in level.present}
    seen |= {f for f in (*section.past, *section.future) if f is not None}
    order = sorted(seen)
    column = {frame: i for i, frame in enumerate(order)}
    history = read(order) if order else target[:, :, :0]
    strength = rng.uniform(0, config.history_noise, size) * (rng.random(size) < 0.5)
    spread = send(torch.as_tensor(strength, dtype=torch.float32), device)[:, None] * channel_std
    noise = torch.randn(history.shape, generator=_generator(rng, device), device=device)
    history = history + noise * spread[:, :, None, None, None]

    def fetch(frames: Sequence[int]) -> torch.Tensor:
        # A list of indices would have to travel to a GPU, and be waited for.
        return torch.stack([history[:, :, column[f]] for f in frames], dim=2)

    context = pack(section, fetch, target, aligned=True, timestep=context_timestep(draw.method))

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
    generator = _generator(rng, device)
    sigma = torch.sigmoid(torch.randn(len(target), generator=generator, device=device))
    sigma = shift_sigmas(sigma, config.shift)
    noise = torch.randn(target.shape, generator=generator, device=device)
    level = sigma[:, None, None, None, None]
    noisy = (1 - level) * target + level * noise
    prompt = conditioner(batch.rows).to(dtype)
    context = batch.context.to(device, dtype)
    output = model(noisy.to(dtype), sigma * 1000, Conditioning(prompt=prompt), batch.positions, context)
    data = to_data(output.float(), noisy, level, model.config.prediction)
    weight = 1 / level.clamp(min=config.floor) ** 2
    return (weight * (data - target) ** 2).mean()


def _generator(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    """Of noise on ``device``: drawn elsewhere it would have to be waited for."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**31)))
