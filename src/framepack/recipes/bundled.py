"""The bundled model: a small packed Wan transformer on the procedural world."""

from __future__ import annotations

from dataclasses import replace

from framepack.data.latents import CacheConfig
from framepack.training.config import NetworkConfig, TrainConfig


def bundled(codec: str) -> TrainConfig:
    """For two CPU cores. ``codec`` is the digest of the codec whose latents are cached."""
    return TrainConfig(
        name="bundled",
        network=NetworkConfig(
            heads=3,
            head_dim=64,
            layers=8,
            ffn=768,
            base_kernel=(1, 1, 1),
            kernels=((1, 1, 1), (2, 2, 2), (4, 4, 4)),
            prompt_width=128,
            prompt_length=8,
        ),
        cache=CacheConfig(clips=1536, frames=96, sizes=((128, 128),), seed=0, codec=codec),
    )


def bundled_gpu(codec: str) -> TrainConfig:
    """The same model trained longer on one GPU, with many more distinct clips, of three aspect ratios."""
    config = bundled(codec)
    return replace(
        config,
        cache=replace(config.cache, clips=16384, sizes=((128, 128), (96, 160), (160, 96))),
        processes=1,
        draws=4,
        micro=64,
        steps=12000,
        warmup=200,
        ema=0.999,
        save_every=250,
        sheet_every=2000,
    )
