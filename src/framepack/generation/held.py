"""A start picture as Helios sees it: noised, and in the history as if it had been held for a section.

Helios was trained on histories of noised latents that go on for a section at a time, so its own pipeline
shows it no clean picture. The timeline keeps the picture as it is at index 0, for the video; what the model
sees in its place stands at two indices that no frame has.

Legend: C latent channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from framepack.generation.hashing import section_seed
from framepack.planning.sections import Section

if TYPE_CHECKING:
    from PIL.Image import Image

    from framepack.models.bundle import Codec

AS_START, AS_HISTORY = -1, -2
"""Where the picture stands on a run's timeline for the levels of these roles."""
_ROLES = {"start": AS_START, "history": AS_HISTORY}


def as_held(section: Section) -> Section:
    """The section with frame 0 seen at `AS_START` and `AS_HISTORY`."""
    context = []
    for level in section.context:
        if level.role in _ROLES and 0 in level.present:
            frames = tuple(_ROLES[level.role] if frame == 0 else frame for frame in level.frames)
            level = replace(level, frames=frames)
        context.append(level)
    return replace(section, context=tuple(context))


def held_latents(
    codec: Codec, picture: Image, latent_frames: int, noise: tuple[float, float], seed: int
) -> Mapping[int, Callable[[], torch.Tensor]]:
    """What makes the latent (C, h, w), float32, of each of the two indices.

    As HeliosPipeline.prepare_image_latents, and the noise that its call adds: level by level drawn between
    the two of ``noise``. Here the draws follow from the run's seed and the index.

    Args:
        latent_frames: of a section, for which the picture is held.
    """

    @torch.inference_mode()
    def make(index: int, latents: int) -> torch.Tensor:
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
        frames = 1 + (latents - 1) * codec.temporal_stride
        clean = codec.encode(pixels[None, :, None].expand(-1, -1, frames, -1, -1))[0, :, -1].float().cpu()
        draw = torch.Generator().manual_seed(section_seed(seed, index))
        low, high = noise
        sigma = low + (high - low) * torch.rand((), generator=draw)
        return sigma * torch.randn(clean.shape, generator=draw) + (1 - sigma) * clean

    return {AS_START: partial(make, AS_START, 1), AS_HISTORY: partial(make, AS_HISTORY, latent_frames)}
