"""What one section sees: clean latents of every level, gathered from the timeline.

Legend: B batch, C latent channels, N frames of one level, T target frames, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F

from framepack.packing.schedule import Kernel

Made = TypeVar("Made")
Fetch = Callable[[Sequence[int]], torch.Tensor]
"""Timeline indices -> latents (B, C, len(indices), h, w)."""
Tail = Callable[["LevelPlan"], torch.Tensor]
"""A level with ``mean`` or ``pool`` -> its latents, already averaged or pooled."""


class LevelPlan(Protocol):
    """The part of a planned context level that gathering reads."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def frames(self) -> Sequence[int | None]: ...
    @property
    def positions(self) -> Sequence[int]: ...
    @property
    def pool(self) -> Kernel | None: ...
    @property
    def mean(self) -> bool: ...


class SpanPlan(Protocol):
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


class SectionPlan(Protocol):
    """The part of a planned section that packing reads."""

    @property
    def spans(self) -> Sequence[SpanPlan]: ...
    @property
    def context(self) -> Sequence[LevelPlan]: ...
    @property
    def past(self) -> Sequence[int | None]: ...
    @property
    def future(self) -> Sequence[int | None]: ...


@dataclass(frozen=True)
class ContextTensors:
    """One level: latents (B, C, N, h, w), positions (N,) and the kernel that patchifies them.

    ``pool`` says by how much the latents were shrunk beforehand, for the phases of their tokens.
    ``timestep`` (B,) is its own; None gives it that of the context.
    """

    latents: torch.Tensor
    positions: torch.Tensor
    kernel: Kernel
    pool: Kernel = (1, 1, 1)
    timestep: torch.Tensor | None = None

    @property
    def times(self) -> torch.Tensor:
        """The last time index (n,) that each of its tokens covers, in their order."""
        last = self.positions
        for size in (self.pool[0], self.kernel[0]):
            last = torch.stack([part.max() for part in last.split(size)])
        spots = [-(-side // k) for side, k in zip(self.latents.shape[3:], self.kernel[1:], strict=True)]
        return last.repeat_interleave(spots[0] * spots[1])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ContextTensors:
        timestep = None if self.timestep is None else self.timestep.to(device)
        return replace(self, latents=self.latents.to(device, dtype), timestep=timestep)

    def repeated(self, times: int) -> ContextTensors:
        """The same level for a batch ``times`` as large."""
        timestep = None if self.timestep is None else self.timestep.repeat(times)
        return replace(self, latents=self.latents.repeat(times, 1, 1, 1, 1), timestep=timestep)


class Memory:
    """What a model keeps of one context between its calls; the first one fills it.

    held: of isolated history, its keys and values (B, n, heads, d) by attention module.
    made: what else is the same in every call, by name, see ``PackedContext.once``.
    """

    def __init__(self) -> None:
        self.held: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}
        self.made: dict[object, Any] = {}


@dataclass(frozen=True)
class PackedContext:
    """All levels, far to near; ``timestep`` None gives history the timestep of the noisy frames.

    aligned: (B, 2C + 2, T, h, w), the nearest known frame on the past and on the future side of
    every target frame, and for each whether it exists.
    memory: for calls that share context, conditioning and batch; see ``remembering``.
    """

    levels: tuple[ContextTensors, ...] = ()
    aligned: torch.Tensor | None = None
    timestep: float | None = None
    memory: Memory | None = None

    def remembering(self) -> PackedContext:
        """The same context with a memory that is empty."""
        return replace(self, memory=Memory())

    def once(self, name: object, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, from memory where it was made for an earlier call."""
        if self.memory is None:
            return make()
        if name not in self.memory.made:
            self.memory.made[name] = make()
        made: Made = self.memory.made[name]
        return made

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PackedContext:
        levels = tuple(level.to(device, dtype) for level in self.levels)
        aligned = None if self.aligned is None else self.aligned.to(device, dtype)
        return PackedContext(levels, aligned, self.timestep)

    def repeated(self, times: int) -> PackedContext:
        """The same context for a batch ``times`` as large."""
        levels = tuple(level.repeated(times) for level in self.levels)
        aligned = None if self.aligned is None else self.aligned.repeat(times, 1, 1, 1, 1)
        return PackedContext(levels, aligned, self.timestep)


EMPTY = PackedContext()


def pooled(latents: torch.Tensor, pool: Kernel) -> torch.Tensor:
    """Latents (B, C, N, h, w) averaged over blocks of ``pool``, those at the edge over what exists."""
    # PyTorch takes no block that is larger than the whole.
    n, h, w = (min(size, whole) for size, whole in zip(pool, latents.shape[2:], strict=True))
    return F.avg_pool3d(latents, (n, h, w), ceil_mode=True, count_include_pad=False)


def gather(
    levels: Sequence[LevelPlan], fetch: Fetch, template: torch.Tensor, tail: Tail | None = None
) -> tuple[ContextTensors, ...]:
    """Latents for every planned level.

    Absent frames (None) become zeros, as the released loops have them. ``template`` is any latent
    (B, C, *, h, w), for shape and dtype. ``tail`` stands in for fetching all frames of a tail.
    """
    whole = [level for level in levels if tail is None or not (level.mean or level.pool)]
    wanted = sorted({f for level in whole for f in level.frames if f is not None})
    known = dict(zip(wanted, fetch(wanted).unbind(2), strict=True)) if wanted else {}
    zeros = torch.zeros_like(template[:, :, 0])
    gathered = []
    for level in levels:
        if tail is not None and (level.mean or level.pool):
            latents = tail(level)
        else:
            latents = torch.stack([zeros if f is None else known[f] for f in level.frames], dim=2)
            if level.mean:
                latents = latents.mean(2, keepdim=True)
            if level.pool:
                latents = pooled(latents, level.pool)
        frames = 1 if level.mean else len(level.frames)
        positions = torch.tensor(level.positions).expand(frames)  # a single one is shared
        gathered.append(ContextTensors(latents, positions, level.kernel, level.pool or (1, 1, 1)))
    return tuple(gathered)


def align(
    spans: Sequence[int],
    past: Sequence[int | None],
    future: Sequence[int | None],
    fetch: Fetch,
    like: torch.Tensor,
) -> torch.Tensor:
    """Condition channels at the place of each target token, as Wan image-to-video has them.

    Args:
        spans: lengths of the target's spans, T in all.
        past, future: for each span the nearest context frame before and after it, or None.
        fetch: gives latents by timeline index.
        like: any latent (B, C, *, h, w), for shape and dtype.

    Returns:
        (B, 2C + 2, T, h, w): past latent, future latent, their two flags.
    """
    batch, channels, _, h, w = like.shape
    parts = []
    for length, *sides in zip(spans, past, future, strict=True):
        blank = like.new_zeros(batch, channels, 1, h, w)
        found = [blank if side is None else fetch([side]).to(like) for side in sides]
        flags = [like.new_full((batch, 1, 1, h, w), float(side is not None)) for side in sides]
        parts.append(torch.cat([*found, *flags], dim=1).expand(-1, -1, length, -1, -1))
    return torch.cat(parts, dim=2)


def pack(
    section: SectionPlan,
    fetch: Fetch,
    template: torch.Tensor,
    *,
    aligned: bool,
    timestep: float | None,
    tail: Tail | None = None,
) -> PackedContext:
    """The whole context of a planned section; arguments as in ``gather``, ``align`` and ``PackedContext``."""
    levels = gather(section.context, fetch, template, tail)
    channels = None
    if aligned:
        lengths = [span.stop - span.start for span in section.spans]
        channels = align(lengths, section.past, section.future, fetch, template)
    return PackedContext(levels, channels, timestep)
