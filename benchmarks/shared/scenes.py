"""Held-out scenes of the procedural world, and what a model's codec makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from framepack.data.world import Scene, sample_scene
from framepack.generation.decode import to_uint8
from framepack.models.bundle import Bundle
from framepack.training.check import HELD_OUT


def held_out(count: int, frames: int, size: tuple[int, int]) -> list[Scene]:
    """Scenes of ``size`` (H, W) never trained on, with one motion and one sky, so that their words hold."""
    scenes = []
    for index in range(count):
        scene = sample_scene(np.random.default_rng([HELD_OUT, index]), frames, size[0] / size[1])
        scenes.append(replace(scene, motions=scene.motions[:1], skies=(scene.skies[0],) * 2))
    return scenes


@torch.inference_mode()
def through_codec(bundle: Bundle, drawn: NDArray[np.uint8], batch: int = 16) -> NDArray[np.uint8]:
    """(N, H, W, 3) encoded and decoded: the best that a generator of latents could do."""
    codec, parts = bundle.codec, []
    parameter = next(codec.parameters())
    for start in range(0, len(drawn), batch):
        pixels = torch.from_numpy(drawn[start : start + batch]).permute(3, 0, 1, 2)[None]
        video = pixels.to(parameter.device, parameter.dtype) / 127.5 - 1
        parts.append(to_uint8(codec.decode(codec.encode(video))[0]).cpu().numpy())
    return np.concatenate(parts)
