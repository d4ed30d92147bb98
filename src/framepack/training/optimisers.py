"""Optimisers of fine-tuning by name."""

from __future__ import annotations

from typing import Any

import torch

from framepack.errors import InputError

OPTIMISERS = ("adamw", "adamw8bit")


def adamw_named(name: str) -> type[torch.optim.Optimizer]:
    """AdamW, or bitsandbytes' with moments of 8 bits (Dettmers and others 2022, arXiv:2110.02861).

    bitsandbytes quantises any tensor of 4,096 values or more in blocks of 256, in plain tensors and without
    compiling; torchao's, which was the other choice, compiles a kernel for each shape and leaves tensors in
    32 bits that are no multiple of its block.

    Args:
        name: one of `OPTIMISERS`.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if name == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            "optimiser adamw8bit needs bitsandbytes: pip install 'framepack-ai[8bit]', or use adamw"
        ) from error
    kind: Any = AdamW8bit
    return kind
