"""A cache of encoded clips of the procedural world, sharded, resumable, and ignorant of planners.

Legend: K clips of one shard, T frames of a clip, C latent channels, h w latent grid.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
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


@lru_cache(maxsize=65536)
def scene_of(seed: int, clip: int, frames: int) -> Scene:
    """The scene of one clip; held-out clips have seeds of their own."""
    return sample_scene(np.random.default_rng([seed, clip]), frames)


def render_shard(config: CacheConfig, shard: int) -> np.ndarray:
    """The clips of one shard as pixels: uint8 (K, T, H, W, 3)."""
    clips = range(shard * SHARD, min((shard + 1) * SHARD, config.clips))
    scenes = [scene_of(config.seed, clip, config.frames) for clip in clips]
    return np.stack([scene.render(range(config.frames), config.height, config.width) for scene in scenes])


@torch.inference_mode()
def encode_shard(codec: FrameAutoencoder, pixels: np.ndarray) -> torch.Tensor:
    """uint8 (K, T, H, W, 3) -> latents (K, T, C, h, w), float16, one clip at a time."""
    clips = []
    for clip in pixels:
        video = torch.from_numpy(clip).to(codec.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        clips.append(codec.encode(video)[0].transpose(0, 1).half().cpu())
    return torch.stack(clips).contiguous()


def build_cache(
    folder: Path,
    codec: FrameAutoencoder,
    config: CacheConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the shards that are missing; several processes share the work by rank.

    Args:
        workers: processes that render ahead of the encoding; 0 renders in this one.

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
    own = range(rank, config.shards, world_size)
    missing = [shard for shard in own if not shard_path(folder, shard).exists()]
    for done, (shard, pixels) in enumerate(
        _rendered(config, missing, workers), start=len(own) - len(missing) + 1
    ):
        path = shard_path(folder, shard)
        unfinished = path.with_suffix(f".{rank}.tmp")
        save_file({"latents": encode_shard(codec, pixels)}, unfinished)
        unfinished.rename(path)
        on_shard(done, len(own))


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"clips-{shard:05d}.safetensors"


def _rendered(config: CacheConfig, shards: list[int], workers: int) -> Iterator[tuple[int, np.ndarray]]:
    """Shards with their pixels, in turn; with workers, a few are rendered ahead."""
    if workers == 0:
        for shard in shards:
            yield shard, render_shard(config, shard)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead: deque[tuple[int, Future[np.ndarray]]] = deque()
        for shard in shards:
            ahead.append((shard, pool.submit(render_shard, config, shard)))
            if len(ahead) > workers:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


class LatentCache:
    """Reads a cache by clip and frame: memory-mapped on a CPU, all of it on ``device`` elsewhere."""

    def __init__(self, folder: Path, config: CacheConfig, device: torch.device | None = None) -> None:
        self.config = config
        self.shards = [load_file(shard_path(folder, shard))["latents"] for shard in range(config.shards)]
        self._whole: torch.Tensor | None = None
        if device is not None and device.type != "cpu":
            self._whole = torch.cat([shard.to(device) for shard in self.shards])

    def scene(self, clip: int) -> Scene:
        return scene_of(self.config.seed, clip, self.config.frames)

    def latents(self, clips: list[int], frames: list[list[int]]) -> torch.Tensor:
        """Frames (one list a clip, of equal lengths) -> (B, C, N, h, w), float32."""
        if self._whole is not None:
            rows = self._whole[torch.tensor(clips)[:, None], torch.tensor(frames)]
        else:
            rows = torch.stack(
                [self.shards[c // SHARD][c % SHARD][f] for c, f in zip(clips, frames, strict=True)]
            )
        return rows.transpose(1, 2).float()

    def channel_std(self) -> torch.Tensor:
        """Standard deviation of each channel (C,), over the first shards."""
        sample = torch.cat([shard[:, ::8].flatten(0, 1) for shard in self.shards[:8]]).float()
        return sample.std(dim=(0, 2, 3))
