"""Attention as three matrix products, for bfloat16 on CPUs.

PyTorch's fused CPU attention is slow in bfloat16 at a few hundred tokens, backward above all; keeping the
probabilities and a softmax backward of two passes is faster for a whole block (benchmarks/attention.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_MOST_TOKENS = 2048
"""Beyond it the probabilities, which grow with its square, take more than they save."""
_CHANGES = ("dropout_p", "is_causal", "enable_gqa")
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class _ExplicitAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v for (B, heads, n, d)."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scale = q.shape[-1] ** -0.5
        p = ((q * scale) @ k.transpose(-1, -2)).softmax(-1)
        out = p @ v
        ctx.save_for_backward(q, k, v, p, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, p, out = ctx.saved_tensors
        (grad,) = grads
        scale = q.shape[-1] ** -0.5
        grad_v = p.transpose(-1, -2) @ grad
        # sum_j p_ij dp_ij = grad_i . out_i (Dao and others 2022, FlashAttention, appendix B)
        delta = (grad.float() * out.float()).sum(-1, keepdim=True).to(p.dtype)
        ds = (grad @ v.transpose(-1, -2)).sub_(delta).mul_(p)
        return (ds @ k) * scale, ds.transpose(-1, -2) @ (q * scale), grad_v


class ExplicitAttention(TorchFunctionMode):
    """While active, plain ``scaled_dot_product_attention`` on the CPU is computed explicitly.

    Plain is what was asked for without mask, dropout, scale or grouped heads; the rest is left alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
            q, k, v = (given[name] for name in _ARGUMENTS[:3])
            plain = given.get("attn_mask") is None and not any(given.get(name) for name in _CHANGES)
            short = q.device.type == "cpu" and max(q.shape[-2], k.shape[-2]) <= _MOST_TOKENS
            if plain and short and given.get("scale") is None:
                return _ExplicitAttention.apply(q, k, v)
        return func(*args, **kwargs)


def attention_for(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context in which attention is fastest: explicit for bfloat16 on CPUs, PyTorch's own elsewhere."""
    slow = device.type == "cpu" and dtype == torch.bfloat16
    return ExplicitAttention() if slow else nullcontext()
