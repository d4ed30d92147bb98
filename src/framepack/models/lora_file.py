"""LoRA files of any trainer, as the weights of a packed transformer's own layers.

Legend: r rank, o output and i input features of a layer; a convolution's input has its kernel behind it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from framepack.errors import ModelError, first_line
from framepack.models import lora_keys

_PARTS = {
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_down.weight": "down",
    "lora.down.weight": "down",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora_up.weight": "up",
    "lora.up.weight": "up",
    "lora_B.bias": "bias",
    "diff_b": "shift",
    "alpha": "alpha",
}
_OTHER_KINDS = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".lora_mid": "LoCon in Tucker form",
    ".oft_": "OFT",
}
METADATA = "lora_adapter_metadata"  # where diffusers keeps the PEFT configuration
_KERNELS = "packing_kernels."


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """A LoRA file in terms of one transformer.

    Attributes:
        low_rank: ``LAYER.lora_A.weight`` (r, i) and ``LAYER.lora_B.weight`` (o, r), alpha / r folded into
            the latter, and ``LAYER.lora_B.bias`` (o,) where the file changes biases.
        full: weights and biases of packing kernels that the file holds whole, by parameter name.
        warnings: what was left out, one line each.
    """

    low_rank: dict[str, torch.Tensor] = field(default_factory=dict)
    full: dict[str, torch.Tensor] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_lora(path: Path, transformer: nn.Module) -> LoraWeights:
    """Read a file of musubi-tuner, diffusion-pipe, diffusers or the original names, whichever it is.

    Fused layers of the original models are split by rows of B. Without an alpha, it is the rank. Packing
    kernels beside the LoRA (``packing_kernels.*``, or the released names) are taken as they are. A LoRA
    on attention alone of an image model with HunyuanVideo's names and sizes cannot be told from one of ours.

    Raises:
        ModelError: not safetensors, of another family, size or kind, with values that are not finite, or
            without a layer of this transformer.
    """
    tensors, metadata = _open(path)
    shapes = _layers(transformer)
    table = lora_keys.layer_table(shapes)
    ours = lora_keys.family_of_model(shapes)
    what = f"LoRA '{path}'"
    _refuse_other_kinds(what, tensors)
    parts, rest = _by_layer(tensors)
    said = metadata.get("modelspec.architecture", "").lower().replace("-", "_")
    theirs = lora_keys.family_of_file([said, *map(lora_keys.flat, parts)])
    if theirs not in (None, ours):
        raise ModelError(f"{what} is for {theirs}, this model is of the {ours} family: give one made for it")

    low_rank: dict[str, torch.Tensor] = {}
    full: dict[str, torch.Tensor] = {}
    left: list[str] = []
    scales = _Scales(what, metadata)
    for layer, keys in parts.items():
        flat = lora_keys.flat(layer)
        if flat not in table and re.sub(r"_\d+_", "_0_", flat, count=1) in table:
            raise ModelError(f"{what} is for a deeper model: this one has no '{layer}'")
        if flat not in table or not keys.keys() & {"down", "up"}:
            left += keys.values()
            continue
        if not {"down", "up"} <= keys.keys():
            raise ModelError(f"{what} is incomplete: '{next(iter(keys.values()))}' has no partner")
        found = {part: tensors[key] for part, key in keys.items()}
        split = _split(f"{what} ('{layer}')", found, table[flat], shapes, scales.of(layer, found))
        if low_rank.keys() & split.keys():
            raise ModelError(f"{what} has '{layer}' under two names: keep one of them")
        low_rank |= split
    for key in rest:
        name = _kernel_parameter(key, table)
        if name is None:
            left.append(key)
        else:
            shape = shapes[name.rpartition(".")[0]]
            wanted = shape if name.endswith(".weight") else shape[:1]
            _fit(f"{what} ('{key}')", tuple(tensors[key].shape), wanted)
            full[name] = tensors[key]

    if not low_rank and not full:
        original, diffusers = lora_keys.EXAMPLES[ours]
        raise ModelError(
            f"{what} matches no layer of this {ours} model: it has {_some(tensors)}; expected are keys like "
            f"lora_unet_{lora_keys.flat(original)}.lora_down.weight, "
            f"diffusion_model.{original}.lora_A.weight or transformer.{diffusers}.lora_A.weight"
        )
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise ModelError(f"{what} is damaged: '{key}' has values that are not finite; get it again")
    warnings = []
    if left:
        warnings.append(
            f"{what}: {len(left):,} of {len(tensors):,} tensors are not for this model and were left out: "
            f"{_some(left)}"
        )
    if scales.unknown and any(key.startswith("base_model.") for key in tensors):
        warnings.append(
            f"{what}: PEFT keeps alpha in adapter_config.json, which is not read; it is taken as r"
        )
    return LoraWeights(low_rank=low_rank, full=full, warnings=tuple(warnings))


def _open(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise ModelError(f"LoRA '{path}' cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        with path.open("rb") as raw:
            start = raw.read(2)
        if start[:1] == b"\x80" or start == b"PK":
            raise ModelError(
                f"LoRA '{path}' is a pickle, which can run code: convert it to safetensors"
            ) from None
        reason = first_line(error)
        raise ModelError(f"LoRA '{path}' is not a whole safetensors file ({reason}): get it again") from error


def _by_layer(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """{layer as the file names it: {part: key}}, and the keys that are no part of a LoRA."""
    parts: dict[str, dict[str, str]] = {}
    rest: list[str] = []
    for key in keys:
        suffix = next((s for s in _PARTS if key.endswith(f".{s}")), None)
        if suffix is None:
            rest.append(key)
        else:
            parts.setdefault(lora_keys.bare(key[: -len(suffix) - 1]), {})[_PARTS[suffix]] = key
    return parts, rest


def _layers(transformer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Linear and convolution layers by name, with the shape (o, i, ...) of their weights.

    Read from their attributes: a quantised weight is stored in another shape.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in transformer.named_modules():
        base: Any = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        if name.endswith(".base_layer") or ".lora_" in name:
            continue
        if isinstance(base, nn.Conv3d):
            shapes[name] = (base.out_channels, base.in_channels, *base.kernel_size)
        elif hasattr(base, "in_features") and hasattr(base, "out_features"):
            shapes[name] = (base.out_features, base.in_features)
    return shapes


def _refuse_other_kinds(what: str, keys: Iterable[str]) -> None:
    for key in keys:
        for mark, kind in _OTHER_KINDS.items():
            if mark in key:
                raise ModelError(f"{what} is a {kind} ('{key}'), which is not supported: use a plain LoRA")


def _fit(what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        sizes = (" x ".join(map(str, shape)) or "a number" for shape in (found, wanted))
        raise ModelError("{} is for a model of another size: {}, here {}".format(what, *sizes))


def _split(
    what: str,
    found: Mapping[str, torch.Tensor],
    targets: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    scale: float,
) -> dict[str, torch.Tensor]:
    """One layer of the file over the layers of ours that share its rows."""
    down, up = found["down"], found["up"]
    rows = [shapes[target][0] for target in targets]
    inner = shapes[targets[0]][1:]
    _fit(what, (*up.shape[:1], *down.shape[1:]), (sum(rows), *inner))
    rank = down.shape[0]
    if rank == 0 or up.shape[1:] != (rank, *(1 for _ in inner[1:])):
        raise ModelError(f"{what}: A {tuple(down.shape)} and B {tuple(up.shape)} do not multiply")
    if scale != 1:
        up = up.float() * scale
    weights: dict[str, torch.Tensor] = {}
    for target, part in zip(targets, up.split(rows), strict=True):
        weights[f"{target}.lora_A.weight"] = down
        weights[f"{target}.lora_B.weight"] = part.contiguous()
    for name, factor in (("bias", scale), ("shift", 1.0)):
        if name in found:
            _fit(what, tuple(found[name].shape), (sum(rows),))
            for target, part in zip(targets, (found[name].float() * factor).split(rows), strict=True):
                key = f"{target}.lora_B.bias"
                weights[key] = weights[key] + part if key in weights else part.contiguous()
    return weights


class _Scales:
    """alpha / r of each layer: from its own tensor, else from the metadata, else 1 and ``unknown``."""

    def __init__(self, what: str, metadata: Mapping[str, str]) -> None:
        self.what, self.unknown = what, False
        try:
            config = json.loads(metadata.get(METADATA, "{}"))
            self.config = {str(k).removeprefix("transformer."): v for k, v in config.items()}
            self.patterns = {str(k): float(v) for k, v in self.config.get("alpha_pattern", {}).items()}
            alpha = self.config.get("lora_alpha")
            self.alpha = None if alpha is None else float(alpha)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{what} has metadata ('{METADATA}') that cannot be read: save it again"
            ) from error
        if self.config.get("use_dora"):
            raise ModelError(f"{what} is a DoRA, which is not supported: use a plain LoRA")

    def of(self, layer: str, found: Mapping[str, torch.Tensor]) -> float:
        rank = max(1, found["down"].shape[0] if found["down"].ndim else 0)
        if "alpha" in found:
            if found["alpha"].numel() != 1:
                raise ModelError(f"{self.what}: alpha of '{layer}' must be one number")
            return float(found["alpha"]) / rank
        fitting = (a for end, a in self.patterns.items() if re.fullmatch(rf"(.*\.)?({end})", layer))
        alpha = next(fitting, self.alpha)
        if alpha is None:
            self.unknown = True
            return 1.0
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _kernel_parameter(key: str, table: Mapping[str, tuple[str, ...]]) -> str | None:
    """Our name of a packing kernel's whole weight or bias."""
    layer, _, leaf = lora_keys.bare(key).rpartition(".")
    (target, *others) = table.get(lora_keys.flat(layer), ("",))
    if others or not target.startswith(_KERNELS) or leaf not in ("weight", "bias"):
        return None
    return f"{target}.{leaf}"


def _some(keys: Iterable[str], most: int = 3) -> str:
    keys = list(keys)
    more = f" and {len(keys) - most:,} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more if keys else "no tensors"
