"""Helios weights in the packed Wan class, and back.

Helios (Yuan and others 2026) is Wan 2.1 with one patchify kernel for each of three terms of history. Its
blocks have Wan's parameters under Wan's names; what differs is listed in `_RENAMED`. diffusers'
``HeliosTransformer3DModel`` is the reference.

    patch_short, patch_mid, patch_long  ->  packing_kernels.projections: the base kernel by 1, 2 and 4
    norm_out.scale_shift_table          ->  scale_shift_table
    guidance_cross_attn                 ->  config.guided_cross_attention
    is_amplify_history                  ->  config.history_scale
    zero_history_timestep               ->  Method.history_timestep
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import HeliosTransformer3DModel

from framepack.codecs.loading import load_module
from framepack.errors import ModelError
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.kernels import kernel_name
from framepack.packing.rates import scaled
from framepack.packing.rope import axis_dims
from framepack.packing.schedule import Kernel

TERMS = {"patch_short": 1, "patch_mid": 2, "patch_long": 4}
_RENAMED = {"norm_out.scale_shift_table": "scale_shift_table"}
_SHARED = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "qk_norm",
    "eps",
)


def _prefixes(base: Kernel) -> dict[str, str]:
    """What a parameter's name begins with in Helios -> here."""
    kernels = {
        f"{name}.": f"packing_kernels.projections.{kernel_name(scaled(base, factor))}."
        for name, factor in TERMS.items()
    }
    return kernels | _RENAMED


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def from_helios_keys(state: Mapping[str, torch.Tensor], base: Kernel) -> dict[str, torch.Tensor]:
    """A Helios state dict under our names; the tensors are the same. ``base``: the base kernel."""
    prefixes = _prefixes(base)
    return {_renamed(name, prefixes): tensor for name, tensor in state.items()}


def to_helios_keys(state: Mapping[str, torch.Tensor], base: Kernel) -> dict[str, torch.Tensor]:
    """The reverse of `from_helios_keys`."""
    prefixes = {new: old for old, new in _prefixes(base).items()}
    return {_renamed(name, prefixes): tensor for name, tensor in state.items()}


def _kernel(config: Mapping[str, Any]) -> Kernel:
    time, height, width = config["patch_size"]
    return (time, height, width)


def from_helios_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``PackedWanTransformer3DModel`` for a configuration of ``HeliosTransformer3DModel``.

    Raises:
        ModelError: what Helios's class could be but none of its releases is.
    """
    rope = axis_dims(config["attention_head_dim"])
    facts = [
        ("rope_dim", tuple(config["rope_dim"]), rope),
        ("rope_theta", config["rope_theta"], 10000.0),
        ("added_kv_proj_dim", config["added_kv_proj_dim"], None),
        ("out_channels", config["out_channels"], config["in_channels"]),
    ]
    for name, found, wanted in facts:
        if found != wanted:
            raise ModelError(
                f"a Helios transformer of {name} {found} is none of the releases, which have {wanted}: "
                "give Helios-Base, -Mid or -Distilled"
            )
    base = _kernel(config)
    terms = TERMS.values() if config["has_multi_term_memory_patch"] else ()
    return {name: config[name] for name in _SHARED} | {
        "context_kernels": tuple(scaled(base, factor) for factor in terms),
        "latent_channels": config["in_channels"],
        "guided_cross_attention": config["guidance_cross_attn"],
        "history_scale": config["history_scale_mode"] if config["is_amplify_history"] else None,
    }


def to_helios_config(config: Mapping[str, Any], *, zero_history_timestep: bool) -> dict[str, Any]:
    """The reverse of `from_helios_config`.

    Raises:
        ModelError: a model that Helios's class cannot be.
    """
    base = _kernel(config)
    kernels = sorted(tuple(kernel) for kernel in config["context_kernels"])
    terms = sorted(scaled(base, factor) for factor in TERMS.values())
    facts = [
        ("context_kernels", kernels, terms),
        ("aligned", config["aligned"], False),
        ("prediction", config["prediction"], "flow"),
        ("isolated_history", config.get("isolated_history", False), False),
        ("image_dim", config["image_dim"], None),
        ("added_kv_proj_dim", config["added_kv_proj_dim"], None),
    ]
    for name, found, wanted in facts:
        if found != wanted:
            raise ModelError(f"a model of {name} {found} cannot be written as Helios, which has {wanted}")
    scale = config["history_scale"]
    return {name: config[name] for name in _SHARED} | {
        "rope_dim": axis_dims(config["attention_head_dim"]),
        "guidance_cross_attn": config["guided_cross_attention"],
        "zero_history_timestep": zero_history_timestep,
        "is_amplify_history": scale is not None,
        "history_scale_mode": scale or "per_head",
    }


def adopt_helios(source: HeliosTransformer3DModel) -> PackedWanTransformer3DModel:
    """The same network in our class. The parameters move across and are not copied.

    Raises:
        ModelError: as `from_helios_config`.
    """
    with init_empty_weights(include_buffers=False):
        model = PackedWanTransformer3DModel(**from_helios_config(source.config))
    state = from_helios_keys(source.state_dict(), _kernel(source.config))
    model.load_state_dict(state, strict=True, assign=True)
    return model.train(source.training)


def to_helios(model: PackedWanTransformer3DModel, *, zero_history_timestep: bool) -> HeliosTransformer3DModel:
    """The same network in diffusers' class, for its pipelines. The parameters are shared.

    Raises:
        ModelError: as `to_helios_config`.
    """
    config = to_helios_config(model.config, zero_history_timestep=zero_history_timestep)
    with init_empty_weights(include_buffers=False):
        target = HeliosTransformer3DModel(**config)
    target.load_state_dict(
        to_helios_keys(model.state_dict(), _kernel(model.config)), strict=True, assign=True
    )
    return target.train(model.training)


def load_helios(folder: Path, dtype: torch.dtype = torch.float32) -> PackedWanTransformer3DModel:
    """Read a Helios transformer's diffusers folder; its weights are held once.

    Raises:
        ModelError: a folder of another model, weights that are missing or not to be read.
    """
    return adopt_helios(load_module(HeliosTransformer3DModel, folder, dtype))
