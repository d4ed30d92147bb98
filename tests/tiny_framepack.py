"""FramePack on HunyuanVideo with tiny random weights, in folders like those released; not for pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from PIL import Image

from tiny_parts import WIDTH, hunyuan_video_vae, save_hunyuan_video

CHANNELS = 16
RELEASED_CLASS = "HunyuanVideoTransformer3DModelPacked"
"""What the released configurations call the transformer; diffusers calls it otherwise."""


def framepack_transformer(**changes: object) -> HunyuanVideoFramepackTransformer3DModel:
    torch.manual_seed(0)
    config: dict = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "rope_axes_dim": (4, 14, 14),
        "has_image_proj": True,
        "image_proj_dim": WIDTH,
        "has_clean_x_embedder": True,
    }
    return HunyuanVideoFramepackTransformer3DModel(**config | changes).eval()


def save_parts(folder: Path) -> Path:
    """Everything but the transformer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_hunyuan_video(folder)
    hunyuan_video_vae(CHANNELS).save_pretrained(folder / "vae")
    return folder


def save_released(folder: Path) -> Path:
    """The transformer alone, at the root, as the released repositories have it."""
    framepack_transformer().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": RELEASED_CLASS}))
    return folder


def picture(width: int, height: int) -> Image.Image:
    """A smooth gradient with a corner of noise."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1)
    pixels[: height // 2, : width // 2] = np.random.default_rng(0).integers(
        0, 255, (height // 2, width // 2, 3)
    )
    return Image.fromarray(pixels.astype(np.uint8))
