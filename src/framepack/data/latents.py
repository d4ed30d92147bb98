"""A cache of encoded clips of the procedural world, sharded, resumable, and ignorant of planners.

Legend: K clips of one shard, T frames of a clip, C latent channels, h w latent grid.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from framepack.codecs.frame import FrameAutoencoder
from framepack.data.panorama import sample_panorama
from framepack.data.ranges import AMOUNT, COUNT, SHARE, check
from framepack.data.world import Scene, sample_scene
from framepack.errors import InputError

SHARD = 32
PANORAMA = 1
"""Tells a clip's draw of a panorama from its draw of another scene."""
Size = tuple[int, int]


@dataclass(frozen=True)
class Shard:
    """One file of a cache: clips ``clips``, all of ``size`` (height, width)."""

    clips: range
    size: Size


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What decides the bytes of a cache.

    Args:
        clips: in all, divided evenly among ``sizes``; the first clips have the first size.
        frames: T of each clip.
        sizes: (height, width) in pixels. codec: digest of the codec.
        panorama: share of the clips that are panoramas.

    Raises:
        InputError: numbers that make no cache.
    """

    clips: int
    frames: int
    sizes: tuple[Size, ...]
    seed: int
    codec: str
    panorama: float = 0.0

    def __post_init__(self) -> None:
        check(self, COUNT, "clips", "frames")
        check(self, SHARE, "panorama")
        check(self, AMOUNT, "seed")
        # A configuration from text has lists.
        object.__setattr__(self, "sizes", tuple(tuple(size) for size in self.sizes))
        if not self.sizes or any(len(size) != 2 or min(size) < 1 for size in self.sizes):
            raise InputError(f"sizes {self.sizes}: give at least one [height, width] in pixels")
        if len(set(self.sizes)) < len(self.sizes):
            raise InputError(f"sizes {self.sizes}: one stands twice; give each once")
        if self.clips < len(self.sizes) or self.frames < 2:
            raise InputError(
                f"{self.clips} clips of {self.frames} frames in {len(self.sizes)} sizes: "
                "there must be a clip of each size, and two frames; ask for more"
            )

    def to_json(self) -> dict[str, Any]:
        """As a card has it. A share of panoramas stands there if there is one: older cards know of none."""
        told = json.loads(json.dumps(asdict(self)))
        return told if self.panorama else {name: told[name] for name in told if name != "panorama"}

    def clips_of(self, size: int) -> range:
        """The clips of ``sizes[size]``."""
        count = len(self.sizes)
        return range(size * self.clips // count, (size + 1) * self.clips // count)

    def size_of(self, clip: int) -> Size:
        return next(size for i, size in enumerate(self.sizes) if clip in self.clips_of(i))

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """At most SHARD clips each, none of two sizes."""
        return tuple(
            Shard(range(start, min(start + SHARD, clips.stop)), size)
            for index, size in enumerate(self.sizes)
            for clips in [self.clips_of(index)]
            for start in range(clips.start, clips.stop, SHARD)
        )


@lru_cache(maxsize=65536)
def scene_of(seed: int, clip: int, frames: int, aspect: float, panorama: float = 0.0) -> Scene:
    """The scene of one clip; held-out clips have seeds of their own. ``aspect`` is height / width.

    panorama: share of the clips that are panoramas; a larger share has those of a smaller one among its own.
    """
    if panorama:
        rng = np.random.default_rng([seed, clip, PANORAMA])
        if rng.random() < panorama:
            return sample_panorama(rng, frames, aspect)
    return sample_scene(np.random.default_rng([seed, clip]), frames, aspect)


def render_shard(config: CacheConfig, shard: Shard) -> np.ndarray:
    """The clips of one shard as pixels: uint8 (K, T, H, W, 3)."""
    height, width = shard.size
    scenes = [
        scene_of(config.seed, clip, config.frames, height / width, config.panorama) for clip in shard.clips
    ]
    return np.stack([scene.render(range(config.frames), height, width) for scene in scenes])


@torch.inference_mode()
def encode_shard(codec: FrameAutoencoder, pixels: np.ndarray) -> torch.Tensor:
    """uint8 (K, T, H, W, 3) -> latents (K, T, C, h, w), float16, one clip at a time."""
    clips = []
    for clip in pixels:
        video = torch.from_numpy(clip).to(codec.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        clips.append(codec.encode(video)[0].transpose(0, 1).half().cpu())
    return torch.stack(clips).contiguous()


def claim_cache(folder: Path, config: CacheConfig) -> None:
    """Write the card of a cache where there is none. Several processes may do so at once.

    Raises:
        InputError: the folder holds a cache of another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / "cache.json"
    wanted = json.dumps(config.to_json())
    if not card.exists():
        unfinished = card.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(wanted)
        unfinished.replace(card)
    elif json.loads(card.read_text()) != json.loads(wanted):
        raise InputError(
            f"'{folder}' holds a cache of another configuration: remove it or name another folder"
        )


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
    claim_cache(folder, config)
    own = range(rank, len(config.shards), world_size)
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
            yield shard, render_shard(config, config.shards[shard])
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead: deque[tuple[int, Future[np.ndarray]]] = deque()
        for shard in shards:
            ahead.append((shard, pool.submit(render_shard, config, config.shards[shard])))
            if len(ahead) > workers:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To ``device`` without waiting for what it is doing: through pinned memory where it is CUDA."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class LatentCache:
    """Reads a cache by clip and frame: memory-mapped on a CPU, all of it on ``device`` elsewhere."""

    def __init__(self, folder: Path, config: CacheConfig, device: torch.device | None = None) -> None:
        self.config, self.device = config, device or torch.device("cpu")
        self._shards = [load_file(shard_path(folder, n))["latents"] for n in range(len(config.shards))]
        self._channel_std = self._spread()
        self._place: dict[int, tuple[torch.Tensor, int]] = {}
        if self.device.type == "cpu":
            for shard, held in zip(config.shards, self._shards, strict=True):
                self._place |= {clip: (held, row) for row, clip in enumerate(shard.clips)}
            return
        for index, size in enumerate(config.sizes):
            of_size = [held for s, held in zip(config.shards, self._shards, strict=True) if s.size == size]
            whole = torch.cat(of_size).to(self.device)
            self._place |= {clip: (whole, row) for row, clip in enumerate(config.clips_of(index))}
        self._shards = []

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Random clips, all of one random size."""
        clips = self.config.clips_of(int(rng.integers(len(self.config.sizes))))
        return rng.integers(clips.start, clips.stop, count).tolist()

    def scene(self, clip: int) -> Scene:
        height, width = self.config.size_of(clip)
        return scene_of(self.config.seed, clip, self.config.frames, height / width, self.config.panorama)

    def offsets(self, rng: np.random.Generator, clips: list[int], frames: int) -> list[int]:
        """A random start of so many frames in each clip; a panorama begins with the frame that shows all."""
        drawn = rng.integers(0, self.config.frames - frames + 1, len(clips)).tolist()
        return [0 if self.scene(clip).aside else offset for clip, offset in zip(clips, drawn, strict=True)]

    def latents(self, clips: list[int], frames: list[list[int]]) -> torch.Tensor:
        """Frames (one list a clip, of equal lengths) of clips of one size -> (B, C, N, h, w), float32."""
        places = [self._place[clip] for clip in clips]
        if self.device.type == "cpu":
            rows = torch.stack([held[row][f] for (held, row), f in zip(places, frames, strict=True)])
        else:
            index = send(torch.tensor([row for _, row in places])[:, None], self.device)
            rows = places[0][0][index, send(torch.tensor(frames), self.device)]
        return rows.transpose(1, 2).float()

    def channel_std(self) -> torch.Tensor:
        """Standard deviation of each channel (C,), over some shards."""
        return self._channel_std

    def _spread(self) -> torch.Tensor:
        every = max(1, len(self._shards) // 8)
        samples = [shard[:, ::8].flatten(0, 1).float() for shard in self._shards[::every][:8]]
        flat = torch.cat([sample.transpose(0, 1).flatten(1) for sample in samples], dim=1)
        return flat.std(dim=1).to(self.device)
