"""Tiny models of both real families with short sections, and a cache of clips for each; not for pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from framepack.data.clips import cutting_for, survey
from framepack.data.encoded import Encoding, plan_cache
from framepack.data.encoding import build_cache
from framepack.data.videos import find
from framepack.models.families import spec_for
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.loading import load_companions
from framepack.models.source import resolve_model
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.planning.method import named_method
from framepack.video.io import write_video
from tiny_framepack import framepack_transformer, save_parts
from tiny_parts import WIDTH, save_wan, wan_vae

SECTION = 2
SIZE = (64, 96)
"""8 x 12 latents."""
KERNELS = ((1, 2, 2), (2, 4, 4), (4, 8, 8))
CAPTIONS = ("a red ball rolls", "the green grass", "")


def wan_transformer() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
    ).eval()


def save_model(family: str, folder: Path) -> Path:
    """A packed model folder of ``wan`` (f1) or ``hunyuan_video`` (inverted and f1)."""
    transformer: PackedWanTransformer3DModel | PackedHunyuanVideoTransformer3DModel
    folder.mkdir(parents=True)
    if family == "wan":
        save_wan(folder)
        wan_vae().save_pretrained(folder / "vae")
        transformer = PackedWanTransformer3DModel.adopt(wan_transformer(), KERNELS)
        names = ["f1"]
    else:
        save_parts(folder)
        transformer = PackedHunyuanVideoTransformer3DModel.adopt(framepack_transformer(), ())
        names = ["inverted", "f1"]
    transformer.save_pretrained(folder / "transformer")
    methods = {name: named_method(name, section_size=SECTION) for name in names}
    spec = spec_for(family, f"tiny-{family}", methods)
    replace(spec, buckets=(SIZE,), steps=2, guidance=1.0).save(folder)
    return folder


def save_clips(model: Path, folder: Path, frames: int = 21) -> Path:
    """A cache of three clips of 6 latents."""
    rng, videos = np.random.default_rng(0), folder / "videos"
    source = resolve_model(str(model))
    for number, caption in enumerate(CAPTIONS):
        wall = rng.integers(0, 255, (*SIZE, 3), np.uint8)
        write_video(videos / f"{number}.mp4", [np.roll(wall, k, 1) for k in range(frames)], source.spec.fps)
        (videos / f"{number}.txt").write_text(caption)
    codec, conditioner = load_companions(source.complete(), torch.device("cpu"))
    encoding = Encoding(cutting=cutting_for(source.spec), codec=codec, conditioner=conditioner)
    found = find(videos)
    cutting, stride = encoding.cutting, codec.spatial_stride
    plan = plan_cache(folder / "cache", found, encoding, lambda: survey(videos, found, cutting), stride)
    assert build_cache(folder / "cache", plan, encoding)
    return folder / "cache"
