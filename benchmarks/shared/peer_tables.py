"""What the benchmark of diffusers' pipelines tells: times, memory and differences as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shared.peers import FAMILIES, LOAD, STAGES, Sizes
from shared.released_operations import Released
from shared.report import Table
from shared.stopwatch import Spent, Stopwatch

MIB = 2**20
OURS = "framepack"
RELEASED = (((256, 256), 5), ((256, 256), 25), ((640, 608), 25))
"""Pixels and steps of the released model that operations are counted for."""


@dataclass(frozen=True)
class Difference:
    """Of two videos in levels of 0 to 255, or of two latents."""

    most: float
    mean: float

    @classmethod
    def of(cls, one: Any, other: Any) -> Difference:
        first, second = (np.asarray(each, dtype=np.float64) for each in (one, other))
        found = np.abs(first - second)
        return cls(float(found.max()), float(found.mean()))


@dataclass(kw_only=True)
class Compared:
    """One number of sections. Watches by round.

    Attributes:
        frames: theirs and ours. latents, pixels: theirs against ours.
        exact: ours against their latents decoded once; seams: theirs against these.
        memory: bytes of tensors, and resident ones, theirs and ours.
    """

    theirs: list[Stopwatch] = field(default_factory=list)
    ours: list[Stopwatch] = field(default_factory=list)
    frames: tuple[int, int] = (0, 0)
    latents: Difference = Difference(0, 0)
    pixels: Difference = Difference(0, 0)
    exact: Difference = Difference(0, 0)
    seams: Difference = Difference(0, 0)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        def stages(watches: Sequence[Stopwatch]) -> list[dict[str, Any]]:
            return [{stage: vars(spent) for stage, spent in watch.stages.items()} for watch in watches]

        differences = {name: vars(getattr(self, name)) for name in ("latents", "pixels", "exact", "seams")}
        return differences | {
            "frames": self.frames,
            "memory": {
                who: dict(zip(("tensors", "resident"), sizes, strict=True))
                for who, sizes in self.memory.items()
            },
            "theirs": stages(self.theirs),
            "ours": stages(self.ours),
        }


@dataclass(frozen=True)
class Option:
    """Ours with an option: watches by round, and how far latents and pixels are from ours without it."""

    watches: list[Stopwatch]
    latents: Difference
    pixels: Difference

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": [spent(watch, "wall") for watch in self.watches],
            "cpu_seconds": [spent(watch, "cpu") for watch in self.watches],
            "latents": vars(self.latents),
            "pixels": vars(self.pixels),
        }


def spent(watch: Stopwatch, clock: str, stages: Sequence[str] = STAGES) -> float:
    """Seconds of these stages: by default of all but loading weights."""
    return sum(getattr(watch.stages.get(stage, Spent()), clock) for stage in stages)


def took(watches: Sequence[Stopwatch], clock: str = "wall", *stages: str) -> float:
    """The median of it."""
    return float(np.median([spent(watch, clock, stages or STAGES) for watch in watches]))


def faster(row: Compared, clock: str) -> float:
    """How many times, in total: the median over rounds."""
    pairs = zip(row.theirs, row.ours, strict=True)
    return float(np.median([spent(one, clock) / spent(other, clock) for one, other in pairs]))


# Tables ----------------------------------------------------------------------------------------------


def time_table(family: str, sizes: Sizes, found: dict[int, Compared], clock: str, repeats: int) -> Table:
    rows = []
    for sections, row in found.items():
        for who, watches in ((FAMILIES[family].pipeline, row.theirs), (OURS, row.ours)):
            whole = took(watches, clock)
            seconds = [took(watches, clock, stage) for stage in STAGES]
            cells = [f"{value:.2f} ({value / whole:.0%})" for value in seconds]
            loading = f"{took(watches, clock, LOAD):.2f}"
            rows.append((f"{sections}: {who}", *cells, f"{whole:.2f}", loading))
        ratios = [
            took(row.theirs, clock, stage) / max(took(row.ours, clock, stage), 1e-9) for stage in STAGES
        ]
        shown = [f"{ratio:.2f} x" for ratio in ratios]
        rows.append((f"{sections}: ratio", *shown, f"{faster(row, clock):.2f} x", ""))
    kind = "wall time" if clock == "wall" else "CPU time of all threads"
    order = f", order {sizes.order}" if family == "framepack" else ""
    return Table(
        title=f"{FAMILIES[family].pipeline} and {OURS}, {sizes.side} x {sizes.side}, {sizes.steps} steps: s",
        columns=("sections", *STAGES, "total", "load"),
        rows=tuple(rows),
        notes=(
            f"{kind}, medians of {repeats} runs in turn, (share of the total); ratio: diffusers to {OURS}, "
            "above 1 is faster here",
            "from the call to the MP4 on disk, which both write with the same encoder and settings; encode: "
            "prompt and start picture; load, not in the total: encoders that a run loads and frees, where "
            "diffusers keeps them",
            f"random float32 weights: transformer {sizes.width} wide with {sizes.blocks} blocks"
            f"{' and twice as many single ones' if family == 'framepack' else ''}, VAE as deep as "
            f"released with {sizes.channels} channels where it has most pixels{order}",
            f"{torch.get_num_threads()} threads; rest: context, keys, sections written to disk and previews "
            f"of {OURS}, the loop of diffusers",
        ),
    )


def memory_table(family: str, found: dict[int, Compared]) -> Table:
    rows = []
    for who in (FAMILIES[family].pipeline, OURS):
        for at, kind in enumerate(("tensors", "resident")):
            sizes = [row.memory[who][at] for row in found.values()]
            cells = [f"{size / MIB:.0f}" for size in sizes]
            rows.append((f"{who}, {kind}", *cells, f"{sizes[-1] / sizes[0]:.2f}"))
    return Table(
        title=f"{FAMILIES[family].pipeline} and {OURS}: peak memory, MiB",
        columns=("", *(f"{count} sections" for count in found), "last / first"),
        rows=tuple(rows),
        notes=(
            "each run in a process of its own, with one thread, loading included; tensors: all that PyTorch "
            "made, each storage once; resident: what the process held more at its peak than at its start, "
            "libraries loaded",
        ),
    )


def difference_table(family: str, found: dict[int, Compared]) -> Table:
    rows = []
    for sections, row in found.items():
        pixels = [f"{each.most:.0f}, {each.mean:.3f}" for each in (row.pixels, row.exact, row.seams)]
        frames = " / ".join(map(str, row.frames))
        rows.append((str(sections), frames, f"{row.latents.most:.1e}, {row.latents.mean:.1e}", *pixels))
    return Table(
        title=f"{FAMILIES[family].pipeline} and {OURS}: largest difference, mean",
        columns=(
            "sections",
            "frames",
            "latents",
            "frames: both",
            f"{OURS}, decoded once",
            "diffusers, the same",
        ),
        rows=tuple(rows),
        notes=(
            f"frames made: diffusers / {OURS}; differences of frames in levels of 0 to 255, before they are "
            "encoded as video",
            "decoded once: diffusers' own latents, without cross-fading; how far that is from it with random "
            "weights tells nothing of trained ones",
        ),
    )


def option_table(found: dict[str, Option], base: Compared, sections: int, clock: str) -> Table:
    theirs_took = took(base.theirs, clock)
    rows = [
        (OURS, f"{took(base.ours, clock):.2f}", f"{theirs_took / took(base.ours, clock):.2f} x", "-", "-")
    ]
    for name, option in found.items():
        seconds, latents, pixels = took(option.watches, clock), option.latents, option.pixels
        cells = (f"{latents.most:.1e}, {latents.mean:.1e}", f"{pixels.most:.0f}, {pixels.mean:.3f}")
        rows.append((name, f"{seconds:.2f}", f"{theirs_took / seconds:.2f} x", *cells))
    return Table(
        title=f"{OURS} with options that change pixels, {sections} sections",
        columns=("", "total, s", "against diffusers", "latents: largest, mean", "pixels: largest, mean"),
        rows=tuple(rows),
        notes=(f"differences to {OURS} without them, with random weights; pixels in levels of 0 to 255",),
    )


def released_table(counts: Sequence[int]) -> tuple[Table, dict[str, Any]]:
    rows, data = [], []
    for (width, height), steps in RELEASED:
        model = Released(width, height)
        for sections in counts:
            found = model.of(sections, steps)
            cells = [f"{value / 1e15:.2f}" for value in (found.sampling, found.theirs, found.ours)]
            name = f"{width} x {height}, {steps} steps, {sections} sections"
            rows.append((name, *cells, f"{found.share:.0%}", f"{found.ratio:.2f} x"))
            data.append(
                {"size": [width, height], "steps": steps, "sections": sections}
                | {"sampling": found.sampling, "theirs": found.theirs, "ours": found.ours}
            )
    return Table(
        title="The released FramePack of 13 billion weights: 10^15 operations, counted, not run",
        columns=("", "sampling", "decoding, diffusers", f"decoding, {OURS}", "share", "ratio"),
        rows=tuple(rows),
        notes=(
            "share: of decoding in diffusers' loop; ratio: of all operations, diffusers to "
            f"{OURS}: what decoding each latent once can give where all operations take the same time",
        ),
    ), {"released": data}
