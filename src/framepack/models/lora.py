"""LoRAs of a run: which files at which weights, on the transformer and off again."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framepack.errors import InputError

if TYPE_CHECKING:
    from framepack.models.lora_file import LoraWeights

_REPLACED = "_weights_before_loras"


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly it acts.

    Raises:
        InputError: a weight that is no finite number.
    """

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise InputError(f"LoRA weight {self.weight} must be a finite number: give one like 0.8")

    @classmethod
    def parse(cls, text: str) -> Lora:
        """``FILE`` or ``FILE:weight``. A file whose own name ends like that goes first.

        Raises:
            InputError: no such file, or no such weight.
        """
        if _is_file(text):
            return cls(Path(text))
        file, _, weight = text.rpartition(":")
        if not _is_file(file):
            raise InputError(
                f"LoRA '{text}' is not a file: give FILE or FILE:weight, as style.safetensors:0.8"
            )
        try:
            return cls(Path(file), float(weight))
        except ValueError:
            raise InputError(f"LoRA weight '{weight}' must be a finite number: give one like 0.8") from None


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a name longer than the file system takes
        return False


def digest(loras: Iterable[Lora]) -> str:
    """SHA-256 over bytes and weight of each, in order: their part of a run's identity.

    Raises:
        InputError: a file that cannot be read.
    """
    total = hashlib.sha256()
    for lora in loras:
        try:
            with lora.path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"LoRA '{lora.path}' cannot be read ({error.strerror}): give a file") from error
        total.update(f"{float(lora.weight)!r}\n".encode())
    return total.hexdigest()


def apply_loras(transformer: Any, loras: Sequence[Lora]) -> list[str]:
    """Have a packed transformer act with these LoRAs, added up, and with no others.

    The base's weights stay as they are, so quantised ones can be under a LoRA; packing kernels that come
    whole inside a file are the exception, W + sum of weight x (W_file - W), and are put back by
    ``remove_loras``. All files are read and checked before anything changes.

    Args:
        transformer: a diffusers model with ``PeftAdapterMixin``.

    Returns:
        What was left out, one line each, for the user.

    Raises:
        ModelError: see ``read_lora``.
    """
    from framepack.models.lora_file import read_lora  # torch is not loaded for parsing an option

    read = [read_lora(lora.path, transformer) for lora in loras]
    remove_loras(transformer)
    try:
        _replace_kernels(transformer, loras, read)
        names = {}
        for number, (lora, weights) in enumerate(zip(loras, read, strict=True)):
            if weights.low_rank:
                names[f"lora_{number}"] = lora.weight
                _attach(transformer, f"lora_{number}", weights)
        if names:
            transformer.set_adapters(list(names), list(names.values()))
            _finish(transformer)
    except BaseException:
        remove_loras(transformer)
        raise
    return [warning for weights in read for warning in weights.warnings]


def remove_loras(transformer: Any) -> None:
    """Take every adapter off; the base is what it was, bit for bit."""
    import torch

    if getattr(transformer, "peft_config", None):
        transformer.unload_lora()
    with torch.no_grad():
        for name, value in transformer.__dict__.pop(_REPLACED, {}).items():
            transformer.get_parameter(name).copy_(value)


def _attach(transformer: Any, name: str, weights: LoraWeights) -> None:
    """Put one adapter of weight 1 on the layers that it changes."""
    import torch

    tensors = dict(weights.low_rank)
    if any(key.endswith(".bias") for key in tensors):  # PEFT has them on all layers or on none
        for key, tensor in weights.low_rank.items():
            if key.endswith(".lora_B.weight"):
                tensors.setdefault(key.removesuffix("weight") + "bias", tensor.new_zeros(len(tensor)))
    with warnings.catch_warnings():
        # PEFT compares the layers with a list of name endings, which says less than the tensors' own names,
        # and is surprised by a second adapter.
        warnings.filterwarnings("ignore", "While injecting the PEFT adapters", RuntimeWarning)
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        transformer.load_lora_adapter(tensors, prefix=None, adapter_name=name, low_cpu_mem_usage=True)
    for key, tensor in tensors.items():
        layer, leaf = key.rsplit(".", 1)
        parameter = transformer.get_parameter(f"{layer}.{name}.{leaf}")  # fails on what did not arrive
        if parameter.dtype.itemsize == 1:  # it got the dtype of 8-bit weights, which only hold the base
            parameter.data = tensor.to(parameter.device, torch.bfloat16)


def _replace_kernels(transformer: Any, loras: Sequence[Lora], read: Sequence[LoraWeights]) -> None:
    import torch

    before = {
        name: transformer.get_parameter(name).detach().clone() for weights in read for name in weights.full
    }
    if not before:
        return
    setattr(transformer, _REPLACED, before)
    with torch.no_grad():
        for name, base in before.items():
            value = base.float()
            for lora, weights in zip(loras, read, strict=True):
                if name in weights.full:
                    value = value + lora.weight * (weights.full[name].to(base.device).float() - base.float())
            transformer.get_parameter(name).copy_(value)


def _finish(transformer: Any) -> None:
    """For inference, and known to the hooks of group offloading, which were placed before."""
    from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(False)
    _maybe_remove_and_reapply_group_offloading(transformer)
