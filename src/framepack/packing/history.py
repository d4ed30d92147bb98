"""What a method may change of a packed context: its history, but not what it pins.

The levels of role ``start`` and ``end`` are shown as they are: those frames are not what drifts. The
channels beside the target show history, and are changed with it.

Legend: B batch, C latent channels, N frames of one level, T target frames, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from framepack.packing.context import LevelPlan, PackedContext, SectionPlan

ROLES = ("history", "tail")
"""Roles of the levels that are history."""
Change = Callable[[torch.Tensor, Sequence[int | None]], torch.Tensor]
"""Latents (B, C, N, h, w), and the frame that each of the N is -> latents in their place.

Some are None, of frames that are absent; all are in a tail."""


class RoleLevel(LevelPlan, Protocol):
    @property
    def role(self) -> str: ...
    @property
    def present(self) -> list[int]: ...


class RoleSection(SectionPlan, Protocol):
    @property
    def context(self) -> Sequence[RoleLevel]: ...


def changed(context: PackedContext, section: RoleSection, change: Change) -> PackedContext:
    """The packed context of a section with its history changed.

    Frames that are absent stay zeros. A tail is changed as it was packed, after averaging.
    """
    levels = []
    for level, plan in zip(context.levels, section.context, strict=True):
        if plan.role == "tail":
            latents = change(level.latents, [None] * level.latents.shape[2])
            level = replace(level, latents=latents)
        elif plan.role in ROLES and plan.present:
            latents = change(level.latents, plan.frames)
            absent = [frame is None for frame in plan.frames]
            if any(absent):
                latents[:, :, torch.tensor(absent, device=latents.device)] = 0
            level = replace(level, latents=latents)
        levels.append(level)
    aligned = context.aligned
    if aligned is not None:
        channels = (aligned.shape[1] - 2) // 2
        *sides, flags = aligned.split([channels, channels, 2], dim=1)
        lengths = [span.stop - span.start for span in section.spans]
        shown = [
            [frame for frame, length in zip(ends, lengths, strict=True) for _ in range(length)]
            for ends in (section.past, section.future)
        ]
        # A flag says whether there is anything.
        sides = [
            change(side, frames) * flag if set(frames) != {None} else side
            for side, frames, flag in zip(sides, shown, flags.split(1, 1), strict=True)
        ]
        aligned = torch.cat([*sides, flags], dim=1)
    return replace(context, levels=tuple(levels), aligned=aligned)
