"""Attention that tells history from noisy tokens: scaled keys, as Helios has them, and isolated history.

Wan's blocks stay as they are and hand on what they are given, so the number of noisy tokens, which are the
last of the sequence, travels with the prompt and with the phases; the processors here take it off again.

Isolated history attends to nothing but history. At a timestep of 0 its keys and values are then the same in
every step of a section: they are computed in the first one, and kept in a `Memory`. Causal history is
isolated, and each of its tokens attends only to those of its own time and of earlier ones (Yin and others
2025, "CausVid").

Legend: B batch, n tokens of the sequence, L prompt tokens, D width, d head dimension.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn

from framepack.errors import InputError
from framepack.packing.context import Memory, PackedContext

HISTORY_SCALES = ("scalar", "per_head")
MAX_SCALE = 10.0


class SplitPrompt(NamedTuple):
    """Prompt tokens (B, L, D), and how many tokens at the end of the sequence are noisy."""

    tokens: torch.Tensor
    noisy: int


class TimeOrder(NamedTuple):
    """Tokens of history by time.

    order: their places (n,), earliest first; None where they stand so. ends: for every time in turn, how
        many tokens are of it or earlier.
    """

    order: torch.Tensor | None
    ends: tuple[int, ...]

    @classmethod
    def of(cls, context: PackedContext, device: torch.device) -> TimeOrder:
        """A token of several frames has the time of the last."""
        times = torch.cat([level.times for level in context.levels])
        ordered, order = times.sort(stable=True)
        ends = ordered.unique_consecutive(return_counts=True)[1].cumsum(0)
        return cls(None if torch.equal(ordered, times) else order.to(device), tuple(ends.tolist()))


class SplitPhases(NamedTuple):
    """Rotary cos and sin (1, n, 1, d), and how many tokens at the end of the sequence are noisy.

    memory: takes the keys and values of a sequence with history, and gives them to one without.
    times: of causal history, else None.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    noisy: int
    memory: Memory | None = None
    times: TimeOrder | None = None


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
        if noisy == 0:
            return torch.zeros_like(hidden_states)
        seen = super().__call__(attn, hidden_states[:, history:], prompt, attention_mask, rotary_emb)
        return F.pad(seen, (0, 0, history, 0))


class HistoryAttnProcessor(WanAttnProcessor):
    """Self-attention under `SplitPhases`.

    Where the attention has a ``history_key_scale`` p, the keys of history are scaled by 1 + 9 sigmoid(p),
    once or head by head (diffusers' ``HeliosAttnProcessor``).

    Args:
        isolated: history attends to history only.
    """

    def __init__(self, isolated: bool = False) -> None:
        super().__init__()
        self.isolated = isolated

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
        if hasattr(attn, "history_key_scale"):
            scale = 1.0 + torch.sigmoid(attn.history_key_scale) * (MAX_SCALE - 1.0)
            amplified = (key[:, :history] * scale[:, None]).type_as(key)
            key = torch.cat([amplified, key[:, history:]], dim=1)

        if self.isolated:
            assert attention_mask is None
            out = attend_isolated(self, attn, query, key, value, history, rotary_emb)
        else:
            out = _attend(self, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


def attend_isolated(
    processor: Any,
    attn: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    history: int,
    phases: SplitPhases,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention (B, n, heads, d) in which the first ``history`` tokens see each other, the others see all.

    Two calls, or one for every time of causal history, so that no mask of n x n is needed.

    Args:
        phases: with the memory, which is filled where there is history. Where there is none, what it holds
            is put before the keys.
        mask: (B, 1, 1, n) of the keys, remembered ones included; all of history must be shown.
    """
    memory = phases.memory
    if memory is not None and history:
        memory.held[attn] = key[:, :history], value[:, :history]
    elif memory is not None and attn in memory.held:
        past_key, past_value = memory.held[attn]
        key, value = torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
    parts = []
    if history:
        own = query[:, :history], key[:, :history], value[:, :history]
        if phases.times is None:
            parts.append(_attend(processor, *own, None))
        else:
            parts.append(_attend_causal(processor, *own, phases.times))
    if query.shape[1] > history:
        parts.append(_attend(processor, query[:, history:], key, value, mask))
    return torch.cat(parts, dim=1)


def _attend_causal(
    processor: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, times: TimeOrder
) -> torch.Tensor:
    """Attention (B, n, heads, d) of history in which every token sees its own time and earlier ones."""
    if times.order is not None:
        query, key, value = (part[:, times.order] for part in (query, key, value))
    seen = [
        _attend(processor, query[:, start:end], key[:, :end], value[:, :end], None)
        for start, end in pairwise((0, *times.ends))
    ]
    out = torch.cat(seen, dim=1)
    return out if times.order is None else out[:, times.order.argsort()]


def _attend(
    processor: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    return dispatch_attention_fn(
        query,
        key,
        value,
        attn_mask=mask,
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )


class IsolatedHunyuanVideoAttnProcessor(HunyuanVideoAttnProcessor2_0):
    """Joint attention over [history | noisy | text] in which history attends to history only.

    ``image_rotary_emb`` is a `SplitPhases` with phases (n, d) of the latent tokens. The rest is as in
    diffusers' processor.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: SplitPhases | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert image_rotary_emb is not None
        latents = hidden_states.shape[1]
        history = latents - image_rotary_emb.noisy
        double = attn.add_q_proj is not None  # blocks of two streams; the others have one projection for both
        parts = []
        for name in ("q", "k", "v"):
            own = getattr(attn, f"to_{name}")
            text = getattr(attn, f"add_{name}_proj") if double else own
            norm = getattr(attn, f"norm_{name}", None)
            text_norm = getattr(attn, f"norm_added_{name}", None) if double else norm
            streams = []
            for project, normalise, x in (
                (own, norm, hidden_states),
                (text, text_norm, encoder_hidden_states),
            ):
                heads = project(x).unflatten(2, (attn.heads, -1))
                streams.append(heads if normalise is None else normalise(heads))
            if name != "v":
                streams[0] = apply_rotary_emb(streams[0], image_rotary_emb[:2], sequence_dim=1)
            parts.append(torch.cat(streams, dim=1))
        query, key, value = parts
        out = attend_isolated(self, attn, query, key, value, history, image_rotary_emb, attention_mask)
        seen = out.flatten(2, 3).to(query.dtype)
        shown, said = seen[:, :latents], seen[:, latents:]
        if getattr(attn, "to_out", None) is not None:
            shown = attn.to_out[1](attn.to_out[0](shown))
        if getattr(attn, "to_add_out", None) is not None:
            said = attn.to_add_out(said)
        return shown, said


def check_isolated(context: PackedContext) -> None:
    """Refuse history that changes from step to step.

    Raises:
        InputError: it has the timestep of the noisy frames, or noise of its own.
    """
    if context.timestep != 0:
        raise InputError(
            "this model has isolated history, whose timestep is 0, and the method gives it that of the noisy "
            "frames: use a method with history timestep 'zero'"
        )
    if any(level.timestep is not None for level in context.levels):
        raise InputError(
            "this model has isolated history, whose timestep is 0, and the method gives it noise and the "
            "timestep of that: use a method without history noise"
        )


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
    attn.set_processor(HistoryAttnProcessor())
