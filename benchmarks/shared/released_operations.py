"""Operations of the released FramePack of 13 billion weights, counted without them: what is sampling, what
is decoding, in diffusers' loop and in ours.

Legend: S latents of a section, N latents of a call of the VAE.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch._subclasses.fake_tensor import FakeTensorMode

from framepack.planning.method import named_method
from framepack.planning.timeline import Timeline
from framepack.resources.hollow import find_architecture
from framepack.resources.operations import operation_counter
from framepack.resources.section_cost import SectionCost
from framepack.resources.sections import packed_sections
from framepack.sampling.shown import context_timestep

MODEL, S = "base", 9
TILE, STEP = 5, 3
"""Latents of a tile in time and from one to the next, as the VAE is released."""


@dataclass(frozen=True)
class Operations:
    """Of a whole video."""

    sampling: float
    theirs: float
    ours: float

    @property
    def share(self) -> float:
        """Of decoding in diffusers' loop."""
        return self.theirs / (self.sampling + self.theirs)

    @property
    def ratio(self) -> float:
        """Theirs to ours, where every operation takes the same time."""
        return (self.sampling + self.theirs) / (self.sampling + self.ours)


def calls(sections: int) -> list[int]:
    """Latents of each call of the VAE in diffusers' loop: two sections for each after the first."""
    return [1 + S] + [2 * S] * (sections - 1)


def tiles(latents: int, *, last: bool = True) -> list[int]:
    """Latents of each tile of a call. ``last``: with one of a single latent, of which no frame is shown."""
    if latents < TILE:
        return [latents]
    found = [min(TILE, latents - start) for start in range(0, latents, STEP)]
    return found if last else [n for n in found if n > 1]


def in_network(sections: int) -> tuple[int, int]:
    """Latents that pass the VAE's network: in diffusers' loop, and each section's once, as we decode."""
    theirs = sum(sum(tiles(n)) for n in calls(sections))
    return theirs, sum(tiles(1 + S * sections, last=False))


class Released:
    """Counts videos of so many pixels."""

    def __init__(self, width: int, height: int) -> None:
        grid = (height // 8, width // 8)
        architecture = find_architecture(MODEL)
        self.method = named_method("f1")
        self.grid = grid
        self.cost = SectionCost(
            architecture,
            grid,
            section=S,
            kernels=self.method.schedule.kernels,
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            timestep=context_timestep(self.method),
        )
        self._tiles: dict[int, int] = {}

    def of(self, sections: int, steps: int) -> Operations:
        timeline = Timeline(frames=1 + 4 * S * sections, fps=30, stride=4, known=(0,))
        planned = packed_sections(timeline, self.method, self.grid)
        counted = self.cost.operations(planned.target, planned.context, planned.pixels)
        sampling = steps * float((planned.times * counted.later).sum())
        theirs = self.decoding(n for call in calls(sections) for n in tiles(call))
        return Operations(sampling, theirs, self.decoding(tiles(1 + S * sections, last=False)))

    def decoding(self, lengths: Iterable[int]) -> float:
        return float(sum(self._tile(n) for n in lengths))

    def _tile(self, latents: int) -> int:
        if latents not in self._tiles:
            with torch.no_grad(), FakeTensorMode(), operation_counter() as counter:
                vae = AutoencoderKLHunyuanVideo()
                vae.decoder(vae.post_quant_conv(torch.empty(1, 16, latents, *self.grid)))
            self._tiles[latents] = counter.get_total_flops()
        return self._tiles[latents]
