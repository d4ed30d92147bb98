"""Attention that tells history from noisy tokens, as Helios does.

Wan's blocks stay as they are and hand on what they are given, so the number of noisy tokens, which are the
last of the sequence, travels with the prompt and with the phases; the processors here take it off again.

Legend: B batch, n tokens of the sequence, L prompt tokens, D width, d head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn

HISTORY_SCALES = ("scalar", "per_head")
MAX_SCALE = 10.0


class SplitPrompt(NamedTuple):
    """Prompt tokens (B, L, D), and how many tokens at the end of the sequence are noisy."""

    tokens: torch.Tensor
    noisy: int


class SplitPhases(NamedTuple):
    """Rotary cos and sin (1, n, 1, d), and how many tokens at the end of the sequence are noisy."""

    cos: torch.Tensor
    sin: torch.Tensor
    noisy: int


class GuidedCrossAttnProcessor(WanAttnProcessor):
    """Cross-attention to a `SplitPrompt` for the noisy tokens only; history gets zeros, so stays as it is."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: SplitPrompt,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: None = None,
    ) -> torch.Tensor:
        prompt, noisy = encoder_hidden_states
        history = hidden_states.shape[1] - noisy
        seen = super().__call__(attn, hidden_states[:, history:], prompt, attention_mask, rotary_emb)
        return F.pad(seen, (0, 0, history, 0))


class AmplifiedHistoryAttnProcessor(WanAttnProcessor):
    """Self-attention under `SplitPhases` in which the keys of history are scaled, once or head by head.

    The scale is 1 + 9 sigmoid(p), p being ``history_key_scale`` of the attention (diffusers'
    ``HeliosAttnProcessor``).
    """

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: SplitPhases | None = None,
    ) -> torch.Tensor:
        assert rotary_emb is not None and not attn.fused_projections
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        query, key = _turned(query, rotary_emb), _turned(key, rotary_emb)

        history = key.shape[1] - rotary_emb.noisy
        scale = 1.0 + torch.sigmoid(attn.history_key_scale) * (MAX_SCALE - 1.0)
        amplified = (key[:, :history] * scale[:, None]).type_as(key)
        key = torch.cat([amplified, key[:, history:]], dim=1)

        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


def _turned(x: torch.Tensor, phases: SplitPhases) -> torch.Tensor:
    """Rotary embedding of (B, n, heads, d), pairs interleaved, as in ``WanAttnProcessor``."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = phases.cos[..., 0::2], phases.sin[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


def amplify_history(attn: WanAttention, mode: str) -> None:
    """Give a self-attention its history scale; ``mode`` is one of `HISTORY_SCALES`."""
    assert mode in HISTORY_SCALES, mode
    parameter = nn.Parameter(torch.ones(attn.heads if mode == "per_head" else 1))
    attn.register_parameter("history_key_scale", parameter)
    attn.set_processor(AmplifiedHistoryAttnProcessor())
