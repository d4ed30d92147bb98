"""The context that a section is shown under a method: the same in generation and in training.

Legend: B batch, C latent channels, N frames, h w latent grid, K codewords.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import repeat

import torch

from framepack.packing.context import Fetch, PackedContext, Tail, pack
from framepack.packing.discretisation import discretized
from framepack.packing.noising import noisy, told
from framepack.planning.method import Method
from framepack.planning.sections import Section


def context_timestep(method: Method) -> float | None:
    """The timestep that a method gives its context: 0 as for clean frames, or None for the noisy frames'."""
    return 0.0 if method.history_timestep == "zero" else None


def shown(
    section: Section,
    method: Method,
    fetch: Fetch,
    template: torch.Tensor,
    *,
    aligned: bool,
    generator: torch.Generator,
    centroids: torch.Tensor | None = None,
    tail: Tail | None = None,
) -> PackedContext:
    """Pack what lies on the timeline, and change its history as the method has it.

    Args:
        fetch, template, tail: as in ``packing.context.gather``.
        aligned: the model takes the aligned channels.
        generator: of the noise on history; on the device of the latents, and read for such methods only.
        centroids: (K, C), for methods with discretised history.
    """
    context = pack(section, fetch, template, aligned=aligned, timestep=context_timestep(method), tail=tail)
    if method.discretized:
        context = discretized(context, section, centroids)
    if method.history_noise:
        sigma = template.new_full((len(template),), method.history_noise, dtype=torch.float32)
        context = told(noisy(context, section, repeat(sigma), generator), section, sigma)
    return context


def without_history(context: PackedContext, method: Method) -> PackedContext:
    """The context of a section before which there is nothing: absent as the method has it."""
    blank = (replace(level, latents=torch.zeros_like(level.latents)) for level in context.levels)
    aligned = None if context.aligned is None else torch.zeros_like(context.aligned)
    levels = tuple(blank) if method.absent == "zeros" else ()
    return replace(context, levels=levels, aligned=aligned)


def history_generator(seed: int) -> torch.Generator:
    """Of the noise on a section's history, where ``seed`` is that of the section's own noise; on the CPU."""
    digest = hashlib.sha256(f"history/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
