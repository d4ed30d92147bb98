"""Names that LoRA files give the layers of HunyuanVideo and Wan, against diffusers' names.

Trainers keep the names of the model's first release, in which several projections can be one fused layer,
or diffusers' names; kohya-style files write either with underscores for dots. So everything is compared
with underscores.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable

HUNYUAN_VIDEO: dict[str, tuple[str, ...]] = {
    "double_blocks.{i}.img_attn_qkv": tuple(f"transformer_blocks.{{i}}.attn.to_{x}" for x in "qkv"),
    "double_blocks.{i}.img_attn_proj": ("transformer_blocks.{i}.attn.to_out.0",),
    "double_blocks.{i}.img_mlp.fc1": ("transformer_blocks.{i}.ff.net.0.proj",),
    "double_blocks.{i}.img_mlp.fc2": ("transformer_blocks.{i}.ff.net.2",),
    "double_blocks.{i}.img_mod.linear": ("transformer_blocks.{i}.norm1.linear",),
    "double_blocks.{i}.txt_attn_qkv": tuple(f"transformer_blocks.{{i}}.attn.add_{x}_proj" for x in "qkv"),
    "double_blocks.{i}.txt_attn_proj": ("transformer_blocks.{i}.attn.to_add_out",),
    "double_blocks.{i}.txt_mlp.fc1": ("transformer_blocks.{i}.ff_context.net.0.proj",),
    "double_blocks.{i}.txt_mlp.fc2": ("transformer_blocks.{i}.ff_context.net.2",),
    "double_blocks.{i}.txt_mod.linear": ("transformer_blocks.{i}.norm1_context.linear",),
    "single_blocks.{i}.linear1": (
        *(f"single_transformer_blocks.{{i}}.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.{i}.proj_mlp",
    ),
    "single_blocks.{i}.linear2": ("single_transformer_blocks.{i}.proj_out",),
    "single_blocks.{i}.modulation.linear": ("single_transformer_blocks.{i}.norm.linear",),
    "img_in.proj": ("x_embedder.proj",),
    "time_in.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.mlp.0": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.mlp.2": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "txt_in.input_embedder": ("context_embedder.proj_in",),
    "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
    "txt_in.t_embedder.mlp.2": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
    "txt_in.c_embedder.linear_1": ("context_embedder.time_text_embed.text_embedder.linear_1",),
    "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2",),
    "txt_in.individual_token_refiner.blocks.{i}.self_attn_qkv": tuple(
        f"context_embedder.token_refiner.refiner_blocks.{{i}}.attn.to_{x}" for x in "qkv"
    ),
    "txt_in.individual_token_refiner.blocks.{i}.self_attn_proj": (
        "context_embedder.token_refiner.refiner_blocks.{i}.attn.to_out.0",
    ),
    "txt_in.individual_token_refiner.blocks.{i}.mlp.fc1": (
        "context_embedder.token_refiner.refiner_blocks.{i}.ff.net.0.proj",
    ),
    "txt_in.individual_token_refiner.blocks.{i}.mlp.fc2": (
        "context_embedder.token_refiner.refiner_blocks.{i}.ff.net.2",
    ),
    "txt_in.individual_token_refiner.blocks.{i}.adaLN_modulation.1": (
        "context_embedder.token_refiner.refiner_blocks.{i}.norm_out.linear",
    ),
    "final_layer.linear": ("proj_out",),
    "clean_x_embedder.proj": ("packing_kernels.projections.k1h2w2",),
    "clean_x_embedder.proj_2x": ("packing_kernels.projections.k2h4w4",),
    "clean_x_embedder.proj_4x": ("packing_kernels.projections.k4h8w8",),
}
"""Original layer -> the layers of diffusers that share its output rows, in order; {i} is a block's number.

``final_layer.adaLN_modulation.1`` is not here: diffusers swaps its halves, and no trainer touches it.
"""

WAN: dict[str, tuple[str, ...]] = {
    **{
        f"blocks.{{i}}.{old}.{x}": (f"blocks.{{i}}.{new}.{y}",)
        for old, new in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for x, y in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
    },
    "blocks.{i}.cross_attn.k_img": ("blocks.{i}.attn2.add_k_proj",),
    "blocks.{i}.cross_attn.v_img": ("blocks.{i}.attn2.add_v_proj",),
    "blocks.{i}.ffn.0": ("blocks.{i}.ffn.net.0.proj",),
    "blocks.{i}.ffn.2": ("blocks.{i}.ffn.net.2",),
    "text_embedding.0": ("condition_embedder.text_embedder.linear_1",),
    "text_embedding.2": ("condition_embedder.text_embedder.linear_2",),
    "time_embedding.0": ("condition_embedder.time_embedder.linear_1",),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2",),
    "time_projection.1": ("condition_embedder.time_proj",),
    "img_emb.proj.1": ("condition_embedder.image_embedder.ff.net.0.proj",),
    "img_emb.proj.3": ("condition_embedder.image_embedder.ff.net.2",),
    "head.head": ("proj_out",),
    "patch_short": ("packing_kernels.projections.k1h2w2",),
    "patch_mid": ("packing_kernels.projections.k2h4w4",),
    "patch_long": ("packing_kernels.projections.k4h8w8",),
}

ORIGINALS = {"HunyuanVideo": HUNYUAN_VIDEO, "Wan": WAN}
EXAMPLES = {
    "HunyuanVideo": ("double_blocks.0.img_attn_qkv", "transformer_blocks.0.attn.to_q"),
    "Wan": ("blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
}
"""One layer's original and diffusers name, for messages."""

_SIGNS = (
    ("Stable Diffusion", r"(down|up|input|output)_blocks_\d|mid(dle)?_block_|^stable_diffusion"),
    ("Flux", r"_(img|txt)_(mlp_[02]|mod_lin)$|^single_blocks_\d+_modulation_lin$|^flux"),
    ("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_|^qwen"),
    ("HunyuanVideo", r"^(double|single)_blocks_\d|^(single_)?transformer_blocks_\d+_(attn|ff|norm|proj)_"),
    ("Wan", r"^blocks_\d+_(self_attn|cross_attn|attn[12]|ffn)_"),
)
_PREFIXES = re.compile(
    r"(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\."
    r"|lora_unet_|lora_transformer_|lycoris_)+"
)


def bare(key: str) -> str:
    """A key without the prefixes by which trainers say that it belongs to the transformer."""
    return _PREFIXES.sub("", key, count=1) if _PREFIXES.match(key) else key


def flat(name: str) -> str:
    return name.replace(".", "_")


def family_of_model(layers: Iterable[str]) -> str:
    """A key of ``ORIGINALS``, from the names of a transformer's layers."""
    return "Wan" if any(name.startswith("blocks.") for name in layers) else "HunyuanVideo"


def family_of_file(names: Iterable[str]) -> str | None:
    """Which model a LoRA was made for, by the flat names of its layers; None where none is known."""
    names = list(names)
    for family, sign in _SIGNS:
        if any(re.search(sign, name) for name in names):
            return family
    return None


def layer_table(layers: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Flat name of every layer, original and diffusers' -> the model's layers that it stands for.

    Args:
        layers: those that this model has, by diffusers' names.
    """
    table: dict[str, tuple[str, ...]] = {flat(layer): (layer,) for layer in layers}
    for original, targets in ORIGINALS[family_of_model(layers)].items():
        for i in itertools.count():
            modules = tuple(target.format(i=i) for target in targets)
            if any(module not in layers for module in modules):
                break
            table[flat(original.format(i=i))] = modules
            if "{i}" not in original:
                break
    return table
