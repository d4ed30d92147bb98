"""Rotary phases for tokens of any kernel, aligned with those of the base kernel.

A large token covers several base tokens; its phase is the average of theirs (cos and sin pooled
separately, Zhang and others 2025, "RoPE alignment"). The pooled phase is not a pure rotation, and
released weights expect it so. Where latents were average-pooled before the kernel, phases are pooled in
the same two steps: over what each pooled latent covers, then over the kernel. Each axis owns its own
part of the head dimension, so pooling the three axes one by one equals pooling the whole grid.

Legend: n tokens, N frames, h w latent grid, d head dimension (d = d_t + d_h + d_w).
"""

from __future__ import annotations

import torch

from framepack.packing.schedule import Kernel


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """(d_t, d_h, d_w) of Wan's rotary embedding: a third each, rounded to even, the rest to time."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def _tables(
    positions: torch.Tensor, dim: int, theta: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (tokens, dim) of one axis at the base kernel, as diffusers' ``get_1d_rotary_pos_embed``."""
    # diffusers builds Wan's own table in single precision wherever there is MPS, which has no double.
    dtype = torch.float32 if torch.backends.mps.is_available() else dtype
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=dtype)[: dim // 2] / dim)
    angles = torch.outer(positions.to("cpu", dtype), frequencies)
    return angles.cos().float().repeat_interleave(2, dim=1), angles.sin().float().repeat_interleave(2, dim=1)


def _shrink(table: torch.Tensor, size: int, kernel: int, base: int, pool: int) -> torch.Tensor:
    """One axis, (base tokens, dim), averaged to the tokens of ``kernel``, for ``size`` latents.

    As the latents themselves: a pool averages what exists, a kernel repeats the last row as padding.
    """
    ratio = kernel // base
    if pool > 1:
        latents = table.repeat_interleave(base, dim=0)[:size]
        table, ratio = torch.stack([part.mean(0) for part in latents.split(pool)]), kernel
    short = -len(table) % ratio
    if short:
        table = torch.cat([table, table[-1:].expand(short, -1)])
    return table.unflatten(0, (-1, ratio)).mean(1) if ratio > 1 else table


def phases(
    positions: torch.Tensor,
    grid: tuple[int, int],
    kernel: Kernel,
    base: Kernel,
    dims: tuple[int, int, int],
    theta: float = 10000.0,
    pool: Kernel = (1, 1, 1),
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary cos and sin for the tokens of one level.

    Args:
        positions: time index of each of the N frames, any integers.
        grid: (h, w) of the latents before pooling and padding.
        kernel, base: patchify kernel of the level and of the base model.
        dims: (d_t, d_h, d_w).
        pool: by what the latents are averaged before the kernel.
        dtype: in which the angles are computed: double for Wan, single for HunyuanVideo, as in diffusers.

    Returns:
        cos, sin of shape (n, d), float32 on the CPU, each value twice (interleaved pairs), n in the
        order time, height, width.
    """
    assert base[0] == 1, "time indices belong to single frames"
    axes = [positions]
    axes += [torch.arange(-(-size // b)) for size, b in zip(grid, base[1:], strict=True)]
    shrink = list(zip((len(positions), *grid), kernel, base, pool, strict=True))
    tables = [
        [_shrink(table, *rule) for table in _tables(at, dim, theta, dtype)]
        for at, dim, rule in zip(axes, dims, shrink, strict=True)
    ]
    counts = [len(cos) for cos, _ in tables]
    merged = []
    for part in range(2):
        views = []
        for i, table in enumerate(tables):
            shape = [1, 1, 1, -1]
            shape[i] = counts[i]
            views.append(table[part].view(shape).expand(*counts, -1))
        merged.append(torch.cat(views, dim=-1).flatten(0, 2))
    return merged[0], merged[1]
