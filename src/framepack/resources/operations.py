"""Floating-point operations, counted as they are dispatched: matrix products, convolutions and attention."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def operation_counter() -> FlopCounterMode:
    """PyTorch's own counter, which knows the fused attention of GPUs, with that of CPUs added.

    A multiplication and its addition are two operations. Used as a context; ``get_total_flops`` tells.
    """
    aten = torch.ops.aten
    fused = {
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *others, **named: sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *others, **named: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    counter = FlopCounterMode(display=False, custom_mapping=fused)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules:
    """In the place of what tells modules apart, whose hooks keep what checkpointing would give back."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass
