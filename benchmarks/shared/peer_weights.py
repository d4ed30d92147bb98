"""Small random weights in the folders of diffusers' pipelines, VAEs as deep as those released."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    HunyuanVideoFramepackPipeline,
)
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPTextModel,
    LlamaModel,
    SiglipVisionModel,
    UMT5EncoderModel,
)

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # where the small encoders are
from tiny_framepack import framepack_transformer
from tiny_parts import WIDTH, save_hunyuan_video, save_wan

HEAD = 32


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the weights and of the video.

    Attributes:
        width: of the transformer, a multiple of ``HEAD``. blocks: double ones of HunyuanVideo, which has
            twice as many single ones, or those of Wan.
        channels: of the VAE where its frames are largest. side: pixels, high and wide.
        order: of FramePack's sections.
    """

    width: int
    blocks: int
    channels: int
    side: int
    steps: int
    order: str = "f1"


def save_framepack(folder: Path, sizes: Sizes) -> None:
    """FramePack on HunyuanVideo, its VAE as deep as the released one."""
    save_hunyuan_video(folder)
    c = sizes.channels
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=(c, 2 * c, 4 * c, 4 * c), norm_num_groups=min(c, 32))
    transformer = framepack_transformer(
        num_attention_heads=sizes.width // HEAD,
        num_layers=sizes.blocks,
        num_single_layers=2 * sizes.blocks,
        mlp_ratio=4.0,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    HunyuanVideoFramepackPipeline(
        **hunyuan_parts(folder), vae=vae.eval(), transformer=transformer, scheduler=scheduler
    ).save_pretrained(folder)


def save_helios(folder: Path, sizes: Sizes) -> None:
    """Helios-Base, its VAE as deep as the released one."""
    save_wan(folder)
    torch.manual_seed(0)
    transformer = HeliosTransformer3DModel(
        num_attention_heads=sizes.width // HEAD,
        attention_head_dim=HEAD,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=4 * sizes.width,
        num_layers=sizes.blocks,
        rope_dim=(12, 10, 10),
    )
    HeliosPipeline(
        **load_parts(folder, tokenizer=AutoTokenizer, text_encoder=UMT5EncoderModel),
        vae=AutoencoderKLWan(base_dim=sizes.channels).eval(),
        transformer=transformer.eval(),
        scheduler=HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True),
    ).save_pretrained(folder)


def hunyuan_parts(folder: Path) -> dict[str, Any]:
    """All that reads prompts and pictures."""
    # Pillow's resampling is what framepack takes everywhere.
    extractor = AutoImageProcessor.from_pretrained(folder / "feature_extractor", backend="pil")
    return {"feature_extractor": extractor} | load_parts(
        folder,
        tokenizer=AutoTokenizer,
        tokenizer_2=AutoTokenizer,
        text_encoder=LlamaModel,
        text_encoder_2=CLIPTextModel,
        image_encoder=SiglipVisionModel,
    )


def load_parts(folder: Path, **kinds: Any) -> dict[str, Any]:
    """Parts of these classes, by name."""
    return {name: kind.from_pretrained(folder / name) for name, kind in kinds.items()}
