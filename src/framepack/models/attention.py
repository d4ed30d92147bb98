"""Attention as three matrix products, for bfloat16 on CPUs; and diffusers' backends by name.

PyTorch's fused CPU attention is slow in bfloat16 at a few hundred tokens, backward above all; keeping the
probabilities and a softmax backward of two passes is faster for a whole block (benchmarks/attention.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from torch.overrides import TorchFunctionMode

from framepack.errors import UnknownNameError

_MOST_TOKENS = 2048
"""Beyond it the probabilities, which grow with its square, take more than they save."""
NATIVE = "native"
"""diffusers' name of PyTorch's own."""
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


def attention_for(
    device: torch.device, dtype: torch.dtype, name: str | None = None
) -> AbstractContextManager[object]:
    """A context in which attention is fastest: explicit for bfloat16 on CPUs, PyTorch's own elsewhere.

    ``name``: one of `attention_names`, in place of it.
    """
    if name is not None:
        return attention_backend(name)
    slow = device.type == "cpu" and dtype == torch.bfloat16
    return ExplicitAttention() if slow else nullcontext()


def attention_names(device: torch.device) -> list[str]:
    """diffusers' attention backends that can be used there, without those that are fetched from the hub."""
    if device.type != "cuda":
        return [NATIVE]
    found = []
    for backend in AttentionBackendName:
        if "hub" not in backend.value:
            with (
                suppress(RuntimeError, ValueError),
                attention_backend(backend.value),
            ):  # refuses what is not installed
                found.append(backend.value)
    return found


def check_attention(name: str | None, device: torch.device) -> str | None:
    """The backend to use; None for what framepack takes by itself, also where it was asked for by name.

    Raises:
        UnknownNameError: none that there is.
    """
    if name is not None and name not in attention_names(device):
        raise UnknownNameError("attention", name, attention_names(device))
    return None if name == NATIVE and device.type != "cpu" else name
