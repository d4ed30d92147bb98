"""Bytes of a model's weights by what they are stored in, and what its largest layers take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from framepack.resources.policy import FP8, NF4

NF4_BLOCK = 64
"""Weights that share one float32 scale, as bitsandbytes has it by default."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All in bytes.

    total: of all weights.
    layers: of the two largest layers, which are on a device together where one comes while one computes.
    unpacked: of the largest layer in what it computes in, beside its stored weights; 0 where they are alike.
    blocks: of each of a packed transformer's, in order; empty for other models.
    """

    total: int
    layers: int
    unpacked: int
    blocks: tuple[int, ...] = ()


def weigh(model: Any, storage: str | None = None, dtype: torch.dtype = torch.bfloat16) -> Weights:
    """Weights of a model on any device, the meta device too.

    Args:
        model: a module of its own; for ``fp8``, diffusers' layerwise casting is left on it.
        storage: as in `Policy`.
        dtype: what layers compute in.
    """
    if storage == FP8:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    seen: set[int] = set()
    layers = [_stored(model, name, module, storage, seen) for name, module in model.named_modules()]
    largest = sorted(map(sum, layers), reverse=True)
    bytes_of = dict(zip(model.modules(), map(sum, layers), strict=True))
    unpacked = [
        sum(p.numel() for p in module.parameters(recurse=False)) * dtype.itemsize
        for name, module in model.named_modules()
        if storage is not None and _is_packed(model, name, module, storage)
    ]
    return Weights(
        total=sum(map(sum, layers)),
        layers=sum(largest[:2]),
        unpacked=max(unpacked, default=0),
        blocks=tuple(
            sum(bytes_of[part] for part in block.modules()) for block in getattr(model, "stack", ())
        ),
    )


def _is_packed(model: Any, name: str, layer: nn.Module, storage: str) -> bool:
    """Whether a layer's weights are stored smaller: by the casting that is on it, or as nf4 would have it."""
    if storage == FP8:
        return any(p.dtype == torch.float8_e4m3fn for p in layer.parameters(recurse=False))
    kept = model._skip_layerwise_casting_patterns or ()
    return type(layer) is nn.Linear and not any(pattern in name for pattern in kept)


def _stored(model: Any, name: str, layer: nn.Module, storage: str | None, seen: set[int]) -> list[int]:
    """Bytes of each tensor that a layer holds by itself, of those in nf4 two for its weight; what is ``seen``
    is tied to another layer's."""
    packed = storage == NF4 and _is_packed(model, name, layer, storage)
    found = []
    for own, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if packed and own == "weight":
            n = tensor.numel()
            found += [math.ceil(n / 2), 4 * math.ceil(n / NF4_BLOCK)]
        else:
            found.append(tensor.numel() * tensor.element_size())
    return found
