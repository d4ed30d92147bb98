"""A LoRA that is trained: put on a packed transformer, and saved for any reader of diffusers' keys."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from framepack.data.encoded import whole
from framepack.errors import InputError
from framepack.models.lora_file import METADATA
from framepack.training.finetune_config import AdapterConfig

TARGETS = {
    "hunyuan_video": r"(single_)?transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)",
    "wan": r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0|add_[kv]_proj)|ffn\.net\.(0\.proj|2))",
}
"""Projections of attention and feed-forward by family, as diffusers names them."""
FILE, KERNEL_FILE = "lora.safetensors", "packing_kernels.safetensors"
PLAIN_FILE = "pytorch_lora_weights.safetensors"
_ADAPTER, _KERNELS = "default", "packing_kernels."


def attach(transformer: Any, family: str, adapter: AdapterConfig, seed: int) -> None:
    """Put a LoRA of float32 weights on a transformer, of which only it and the packing kernels are trained.

    Raises:
        InputError: targets that are no regular expression, or that match no layer.
    """
    from peft import LoraConfig

    targets = TARGETS[family] if adapter.targets is None else adapter.targets
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise InputError(
            f"lora.targets '{targets}' is no regular expression ({error}): correct it"
        ) from error
    layers = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and pattern.fullmatch(name)
    ]
    if not layers:
        raise InputError(f"lora.targets '{targets}' match no linear layer: leave them out, or correct them")
    transformer.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer.add_adapter(
            LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=layers), _ADAPTER
        )
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    transformer.packing_kernels.requires_grad_(adapter.kernels)


def detach(transformer: Any) -> None:
    """Have the weights hold what the LoRA adds to them, without it."""
    transformer.fuse_lora()
    transformer.unload_lora()


def save_lora(transformer: Any, adapter: AdapterConfig, folder: Path) -> None:
    """Save what ``attach`` has trained.

        lora.safetensors                           all of it, for ``framepack generate --lora``
        diffusers/pytorch_lora_weights.safetensors the LoRA alone: diffusers refuses a file with other keys
        diffusers/packing_kernels.safetensors      the kernels, under the transformer's keys

    Raises:
        OutputError: they cannot be written; those of before are as they were.
    """
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(transformer, adapter_name=_ADAPTER)
    low_rank = {f"transformer.{key}": tensor.contiguous() for key, tensor in layers.items()}
    names = sorted({key.split(".lora_")[0] for key in layers})
    said = {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": names}
    # One entry alone: several would lie in the file in any order.
    metadata = {METADATA: json.dumps({f"transformer.{key}": value for key, value in said.items()})}
    kernels = {
        name: parameter.detach().contiguous()
        for name, parameter in transformer.named_parameters()
        if adapter.kernels and name.startswith(_KERNELS)
    }
    _write(folder / "diffusers" / PLAIN_FILE, low_rank, metadata)
    if kernels:
        _write(folder / "diffusers" / KERNEL_FILE, kernels, {"format": "pt"})
    _write(folder / FILE, low_rank | kernels, metadata)


def _write(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    with whole(file) as part:
        save_file(tensors, part, metadata=metadata)
