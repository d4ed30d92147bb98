"""A cache of encoded clips of the procedural world, sharded, resumable, and ignorant of planners.

Legend: K clips of one shard, T frames of a clip, C latent channels, h w latent grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from framepack.codecs.frame import FrameAutoencoder
from framepack.data.world import Scene, sample_scene
from framepack.errors import InputError

SHARD = 32


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What decides the bytes of a cache: K clips a shard, ``clips`` in all, T ``frames`` each."""

    clips: int
    frames: int
    height: int
    width: int
    seed: int
    codec: str

    @property
    def shards(self) -> int:
        return -(-self.clips // SHARD)


def codec_digest(codec: FrameAutoencoder) -> str:
    """sha256 of the codec's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=8192)
def scene_of(seed: int, clip: int, frames: int) -> Scene:
    """The scene of one clip; held-out clips have seeds of their own."""
    return sample_scene(np.random.default_rng([seed, clip]), frames)


@torch.inference_mode()
def encode_shard(codec: FrameAutoencoder, config: CacheConfig, shard: int) -> torch.Tensor:
    """Render and encode the clips of one shard: (K, T, C, h, w), float16."""
    device = next(codec.parameters()).device
    clips = []
    for clip in range(shard * SHARD, min((shard + 1) * SHARD, config.clips)):
        scene = scene_of(config.seed, clip, config.frames)
        pixels = torch.from_numpy(scene.render(range(config.frames), config.height, config.width))
        video = pixels.to(device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        clips.append(codec.encode(video)[0].transpose(0, 1).half().cpu().contiguous())
    return torch.stack(clips).contiguous()


def build_cache(
    folder: Path,
    codec: FrameAutoencoder,
    config: CacheConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the shards that are missing; several processes share the work by rank.

    Raises:
        InputError: the folder holds a cache of another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / "cache.json"
    if card.exists() and json.loads(card.read_text()) != asdict(config):
        raise InputError(
            f"'{folder}' holds a cache of another configuration: remove it or name another folder"
        )
    if rank == 0:
        card.write_text(json.dumps(asdict(config)))
    for shard in range(rank, config.shards, world_size):
        path = folder / f"clips-{shard:05d}.safetensors"
        if not path.exists():
            unfinished = path.with_suffix(f".{rank}.tmp")
            save_file({"latents": encode_shard(codec, config, shard)}, unfinished)
            unfinished.rename(path)
        on_shard(shard // world_size + 1, -(-config.shards // world_size))


class LatentCache:
    """Reads a cache by clip and frame; shards are memory-mapped, or held on ``device`` if given."""

    def __init__(self, folder: Path, config: CacheConfig, device: torch.device | None = None) -> None:
        self.config = config
        paths = [folder / f"clips-{shard:05d}.safetensors" for shard in range(config.shards)]
        self.shards = [load_file(path)["latents"] for path in paths]
        if device is not None and device.type != "cpu":
            self.shards = [shard.to(device) for shard in self.shards]

    def scene(self, clip: int) -> Scene:
        return scene_of(self.config.seed, clip, self.config.frames)

    def latents(self, clips: list[int], frames: list[list[int]]) -> torch.Tensor:
        """Frames (one list a clip, of equal lengths) -> (B, C, N, h, w), float32."""
        rows = [self.shards[c // SHARD][c % SHARD][f] for c, f in zip(clips, frames, strict=True)]
        return torch.stack(rows).transpose(1, 2).float()

    def channel_std(self) -> torch.Tensor:
        """Standard deviation of each channel (C,), over the first shards."""
        sample = torch.cat([shard[:, ::8].flatten(0, 1) for shard in self.shards[:8]]).float()
        return sample.std(dim=(0, 2, 3)).cpu()
