"""A whole model of random weights, small enough that a section takes milliseconds; not for pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from framepack.codecs.frame import FrameAutoencoder
from framepack.conditioning.lexicon import VOCABULARY
from framepack.conditioning.words import WordConditioner
from framepack.models.bundle import Bundle
from framepack.models.shift import RELEASED
from framepack.models.spec import ModelSpec
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.schedule import Level, PackingSchedule, Tail
from framepack.planning.method import METHODS, Importance, named_method
from framepack.video.io import read_video

CHANNELS, STRIDE, SIZE = 4, 8, 32
BASE = (1, 1, 1)
SECTION = 3


def tiny_spec() -> ModelSpec:
    methods = {
        name: named_method(name, base=BASE, section_size=SECTION, max_gap=8)
        for name in METHODS
        if name != "planned"
    }
    near = (Level(1, BASE),)
    methods["appended"] = replace(methods["vanilla"], schedule=PackingSchedule(near, Tail.APPEND))
    methods["compressed"] = replace(methods["inverted-plain"], schedule=PackingSchedule(near, Tail.COMPRESS))
    methods["similar"] = replace(methods["vanilla"], importance=Importance(kind="hybrid", pool=8))
    return ModelSpec(
        name="tiny",
        family="wan",
        base_kernel=BASE,
        latent_channels=CHANNELS,
        spatial_stride=STRIDE,
        temporal_stride=1,
        fps=8.0,
        buckets=((SIZE, SIZE), (24, 40)),
        methods=methods,
        default_method="inverted",
        steps=2,
        guidance=1.5,
        solver="euler",
        shift=RELEASED,
    )


def tiny_codec(stride: int = STRIDE) -> FrameAutoencoder:
    """Of random weights, the next that there are."""
    return FrameAutoencoder(
        channels=CHANNELS,
        stride=stride,
        encoder_widths=(8, 8),
        encoder_blocks=(1, 1),
        decoder_widths=(8, 8),
        decoder_blocks=(1, 1),
    )


@cache
def tiny_bundle() -> Bundle:
    """The model in memory, the same weights on every call."""
    torch.manual_seed(0)
    transformer = PackedWanTransformer3DModel(
        patch_size=BASE,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=3 * CHANNELS + 2,
        out_channels=CHANNELS,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        context_kernels=(BASE, (2, 2, 2), (4, 4, 4)),
        latent_channels=CHANNELS,
        aligned=True,
        prediction="sample",
    )
    codec = tiny_codec()
    conditioner = WordConditioner(words=VOCABULARY, width=16, length=8)
    for part in (transformer, codec, conditioner):
        part.eval().requires_grad_(False)
    return Bundle(
        spec=tiny_spec(), transformer=transformer, codec=codec, conditioner=conditioner, digest="tiny" * 16
    )


def save_tiny(folder: Path) -> Path:
    """The same model as a folder, for ``--model``."""
    tiny_bundle().save(folder)
    return folder


def pictures_of(video: Path) -> np.ndarray:
    """Frames (F, H, W, 3) of a file. x264 gives other bytes for the same frames at widths like these."""
    return np.stack([*read_video(video).frames]).astype(int)


def look_alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether videos differ by no more than an encoder's noise."""
    return first.shape == second.shape and float(np.abs(first - second).mean()) < 1
