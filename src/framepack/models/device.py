"""Where a model computes, and in what precision, chosen when it is asked for."""

from __future__ import annotations

import gc
import re

import torch

from framepack.errors import InputError


def pick_device(wanted: str | None) -> torch.device:
    """``auto`` or None: CUDA, else MPS, else CPU.

    Raises:
        InputError: a device that this machine does not have.
    """
    if wanted in (None, "auto"):
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        if not re.fullmatch(
            r"cpu|cuda(:\d{1,3})?|mps", wanted
        ):  # PyTorch names devices that make no pictures
            raise RuntimeError
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"device '{wanted}' is not on this machine: use auto, cpu, cuda or mps") from None
    return device


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 on GPUs and CPUs that compute in it, float32 elsewhere."""
    if wanted == "auto":
        wanted = "bfloat16" if _computes_bfloat16(device) else "float32"
    return getattr(torch, wanted)


def release(device: torch.device) -> None:
    """Give back what allocators keep for reuse."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # absent from older PyTorch
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
