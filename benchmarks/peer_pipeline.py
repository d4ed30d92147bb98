"""diffusers' pipelines and framepack: the same weights, prompt, noise, steps and frames, from call to MP4.

Weights are small and random, the VAEs as deep as those released. Sizes are meant to have diffusers spend
about three quarters of its time decoding FramePack, as was seen of a small model on a CPU: the table tells
the shares that it has. The last one counts those of the released model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from framepack.generation.clock import peak_memory, resident_memory
from framepack.models.bundle import Bundle
from framepack.resources.machine import machine
from framepack.resources.tally import Tally
from shared.peers import FAMILIES, LOAD, ORDERS, STAGES, Made, Sizes, decoded_once, load_ours, ours, theirs
from shared.released_operations import Released, in_network
from shared.report import Report, Table, carry_out
from shared.stopwatch import Spent, Stopwatch

MIB = 2**20
OURS = "framepack"
DEFAULTS = {
    "framepack": Sizes(width=256, blocks=2, channels=4, side=256, steps=5),
    "helios": Sizes(width=96, blocks=2, channels=4, side=256, steps=5),
}
"""By family. See above what they are meant for; Helios's were not fitted to any share."""
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


# Options that change pixels --------------------------------------------------------------------------


def in_bfloat16(model: Path) -> Bundle:
    return load_ours(model, torch.bfloat16)


def tiles_apart(model: Path) -> Bundle:
    return _apart(load_ours(model))


def both(model: Path) -> Bundle:
    return _apart(in_bfloat16(model))


def _apart(bundle: Bundle) -> Bundle:
    vae: Any = bundle.codec.vae  # type: ignore[attr-defined]
    vae.tile_sample_stride_num_frames = vae.tile_sample_min_num_frames
    return bundle


OPTIONS: dict[str, Callable[[Path], Bundle]] = {
    "transformer in bfloat16": in_bfloat16,
    "tiles in time that do not overlap": tiles_apart,
    "both": both,
}
"""Of FramePack, whose VAE has tiles in time: how to load a model so."""


# Measured --------------------------------------------------------------------------------------------


def weighed(make: Callable[[], object]) -> tuple[int, int]:
    """Peaks of what ``make`` does, in a process of its own: bytes of tensors, and resident ones it added."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        before = resident_memory()
        try:
            with Tally() as tally:
                make()
            send.send((tally.peak, peak_memory(torch.device("cpu")) - before))
        except Exception as error:
            send.send(error)

    process = context.Process(target=child)
    process.start()
    send.close()  # so that the end of a process that was killed is the end of the pipe
    try:
        found = receive.recv()
    finally:
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


class Bench:
    """One family: its weights in a folder, and both ways to run them."""

    def __init__(self, name: str, sizes: Sizes, folder: Path) -> None:
        self.name, self.family, self.sizes = name, FAMILIES[name], sizes
        self.model, self.work = folder / name, folder / f"{name}-work"
        self.family.save(self.model, sizes)
        self.work.mkdir()

    def _fresh(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.work))

    def ours(self, bundle: Bundle, sections: int, **more: Any) -> Made:
        asked = self.family.asks(self.sizes, sections)
        return ours(bundle, self.sizes, sections, self._fresh(), asked, **more)

    def theirs(self, peer: Any, sections: int, fps: float) -> Made:
        return theirs(peer, self.sizes, sections, self._fresh(), fps)

    def weigh(self, sections: int) -> dict[str, tuple[int, int]]:
        """Loading included, of both."""
        return {
            self.family.pipeline: weighed(lambda: self.theirs(self.family.peer(self.model), sections, 30.0)),
            OURS: weighed(lambda: self.ours(load_ours(self.model), sections, keep=False)),
        }


def compare(
    bench: Bench, counts: Sequence[int], repeats: int, console: Console
) -> tuple[dict[int, Compared], Made, Made]:
    """By number of sections; and what both made of the last one."""
    bundle, peer = load_ours(bench.model), bench.family.peer(bench.model)
    fps = bundle.spec.fps
    bench.ours(bundle, 1), bench.theirs(peer, 1, fps)  # libraries choose their kernels on first use
    found = {}
    for sections in counts:
        row = found[sections] = Compared()
        for turn in range(repeats):
            # In turn the one and the other first: a slow trend of the machine then cancels out.
            for mine in (True, False) if turn % 2 == 0 else (False, True):
                if mine:
                    made = bench.ours(bundle, sections)
                    row.ours.append(made.watch)
                else:
                    made_there = bench.theirs(peer, sections, fps)
                    row.theirs.append(made_there.watch)
        shared = min(len(made.frames), len(made_there.frames))
        once = decoded_once(peer, bench.name, made_there.latents)
        row.frames = (len(made_there.frames), len(made.frames))
        row.latents = Difference.of(made.latents, made_there.latents)
        row.pixels = Difference.of(made.frames[:shared], made_there.frames[:shared])
        row.exact = Difference.of(made.frames, once[: len(made.frames)])
        row.seams = Difference.of(made_there.frames, once[: len(made_there.frames)])
        ratio = faster(row, "wall")
        console.print(
            f"{bench.name}, {sections} sections: {ratio:.2f} x in {took(row.ours):.1f} s", style="dim"
        )
    return found, made, made_there


def with_options(
    bench: Bench, sections: int, exact: Made, repeats: int, console: Console
) -> dict[str, tuple[list[Stopwatch], Difference, Difference]]:
    """By option: watches, and the difference of latents and pixels to ours without it."""
    found = {}
    for name, load in OPTIONS.items():
        bundle = load(bench.model)
        bench.ours(bundle, 1)
        made = [bench.ours(bundle, sections) for _ in range(repeats)]
        latents = Difference.of(made[-1].latents, exact.latents)
        pixels = Difference.of(made[-1].frames, exact.frames)
        found[name] = ([each.watch for each in made], latents, pixels)
        console.print(f"{name}: {took(found[name][0]):.1f} s", style="dim")
    return found


# Told ------------------------------------------------------------------------------------------------


def total(watch: Stopwatch, clock: str) -> float:
    """Seconds without loading weights."""
    return sum(getattr(watch.stages.get(stage, Spent()), clock) for stage in STAGES)


def took(watches: Sequence[Stopwatch], clock: str = "wall") -> float:
    return float(np.median([total(watch, clock) for watch in watches]))


def of_stage(watches: Sequence[Stopwatch], stage: str, clock: str) -> float:
    return float(np.median([getattr(watch.stages.get(stage, Spent()), clock) for watch in watches]))


def faster(row: Compared, clock: str) -> float:
    """How many times, in total: the median over rounds."""
    pairs = zip(row.theirs, row.ours, strict=True)
    return float(np.median([total(one, clock) / total(other, clock) for one, other in pairs]))


def time_table(bench: Bench, found: dict[int, Compared], clock: str, repeats: int) -> Table:
    rows = []
    for sections, row in found.items():
        for who, watches in ((bench.family.pipeline, row.theirs), (OURS, row.ours)):
            whole = took(watches, clock)
            seconds = [of_stage(watches, stage, clock) for stage in STAGES]
            cells = [f"{value:.2f} ({value / whole:.0%})" for value in seconds]
            loading = f"{of_stage(watches, LOAD, clock):.2f}"
            rows.append((f"{sections}: {who}", *cells, f"{whole:.2f}", loading))
        ratios = [
            of_stage(row.theirs, stage, clock) / max(of_stage(row.ours, stage, clock), 1e-9)
            for stage in STAGES
        ]
        shown = [f"{ratio:.2f} x" for ratio in ratios]
        rows.append((f"{sections}: ratio", *shown, f"{faster(row, clock):.2f} x", ""))
    sizes = bench.sizes
    kind = "wall time" if clock == "wall" else "CPU time of all threads"
    order = f", order {sizes.order}" if bench.name == "framepack" else ""
    return Table(
        title=f"{bench.family.pipeline} and {OURS}, {sizes.side} x {sizes.side}, {sizes.steps} steps: s",
        columns=("sections", *STAGES, "total", "load"),
        rows=tuple(rows),
        notes=(
            f"{kind}, medians of {repeats} runs in turn, (share of the total); ratio: diffusers to {OURS}, "
            "above 1 is faster here",
            "from the call to the MP4 on disk, which both write with the same encoder and settings; encode: "
            "prompt and start picture; load, not in the total: encoders that a run loads and frees, where "
            "diffusers keeps them",
            f"random float32 weights: transformer {sizes.width} wide with {sizes.blocks} blocks"
            f"{' and twice as many single ones' if bench.name == 'framepack' else ''}, VAE as deep as "
            f"released with {sizes.channels} channels where it has most pixels{order}",
            f"{torch.get_num_threads()} threads; rest: context, keys, sections written to disk and previews "
            f"of {OURS}, the loop of diffusers",
        ),
    )


def memory_table(bench: Bench, found: dict[int, Compared]) -> Table:
    rows = []
    for who in (bench.family.pipeline, OURS):
        for at, kind in enumerate(("tensors", "resident")):
            sizes = [row.memory[who][at] for row in found.values()]
            cells = [f"{size / MIB:.0f}" for size in sizes]
            rows.append((f"{who}, {kind}", *cells, f"{sizes[-1] / sizes[0]:.2f}"))
    return Table(
        title=f"{bench.family.pipeline} and {OURS}: peak memory, MiB",
        columns=("", *(f"{count} sections" for count in found), "last / first"),
        rows=tuple(rows),
        notes=(
            "each run in a process of its own, with one thread, loading included; tensors: all that PyTorch "
            "made, each storage once; resident: what the process held more at its peak than at its start, "
            "libraries loaded",
        ),
    )


def difference_table(bench: Bench, found: dict[int, Compared]) -> Table:
    rows = []
    for sections, row in found.items():
        pixels = [f"{each.most:.0f}, {each.mean:.3f}" for each in (row.pixels, row.exact, row.seams)]
        frames = " / ".join(map(str, row.frames))
        rows.append((str(sections), frames, f"{row.latents.most:.1e}, {row.latents.mean:.1e}", *pixels))
    return Table(
        title=f"{bench.family.pipeline} and {OURS}: largest difference, mean",
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


def option_table(bench: Bench, found: dict[str, Any], base: Compared, sections: int, clock: str) -> Table:
    theirs_took = took(base.theirs, clock)
    rows = [
        (OURS, f"{took(base.ours, clock):.2f}", f"{theirs_took / took(base.ours, clock):.2f} x", "-", "-")
    ]
    for name, (watches, latents, pixels) in found.items():
        seconds = took(watches, clock)
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


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    counts, clock = sorted(set(options.sections)), options.clock
    tables: list[Table] = []
    findings: list[str] = []
    data: dict[str, Any] = {"sections": counts, "families": {}}
    where = machine("cpu")
    threads = options.threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as name:
        for family in options.families:
            changes = {
                field: getattr(options, field) for field in ("width", "blocks", "channels", "side", "steps")
            }
            sizes = replace(
                DEFAULTS[family],
                order=options.order,
                **{field: value for field, value in changes.items() if value is not None},
            )
            # First of all, and with one thread: a process that is split must not have started others.
            torch.set_num_threads(1)
            bench = Bench(family, sizes, Path(name))
            memory = {count: bench.weigh(count) for count in counts}
            torch.set_num_threads(threads)
            found, last, _ = compare(bench, counts, options.repeats, console)
            for count, row in found.items():
                row.memory = memory[count]
            tables += [
                time_table(bench, found, clock, options.repeats),
                memory_table(bench, found),
                difference_table(bench, found),
            ]
            told = {str(count): _json(row) for count, row in found.items()}
            data["families"][family] = {"sizes": vars(sizes), "by_sections": told}
            findings.append(
                f"{bench.family.pipeline}: {OURS} is "
                + ", ".join(f"{faster(row, clock):.2f} x" for row in found.values())
                + f" as fast in total at {', '.join(map(str, counts))} sections ({clock} time)"
            )
            if family == "framepack":
                passed = {count: in_network(count) for count in counts}
                data["latents_in_network"] = passed
                findings.append(
                    "latents through the VAE's network, diffusers / framepack: "
                    + ", ".join(f"{one} / {other}" for one, other in passed.values())
                )
                if options.options:
                    changed = with_options(bench, counts[-1], last, options.repeats, console)
                    tables.append(option_table(bench, changed, found[counts[-1]], counts[-1], clock))
                    data["options"] = {
                        option: {
                            "seconds": [total(watch, "wall") for watch in watches],
                            "cpu_seconds": [total(watch, "cpu") for watch in watches],
                            "latents": vars(latents),
                            "pixels": vars(pixels),
                        }
                        for option, (watches, latents, pixels) in changed.items()
                    }
        if options.released:
            table, counted = released_table(counts)
            tables.append(table)
            data |= counted
    return Report(
        name="diffusers' pipelines and framepack",
        command=command,
        machine=where,
        tables=tuple(tables),
        findings=tuple(findings),
        data=data,
    )


def _json(row: Compared) -> dict[str, Any]:
    def stages(watches: Sequence[Stopwatch]) -> list[dict[str, Any]]:
        return [{stage: vars(spent) for stage, spent in watch.stages.items()} for watch in watches]

    differences = {name: vars(getattr(row, name)) for name in ("latents", "pixels", "exact", "seams")}
    return differences | {
        "frames": row.frames,
        "memory": {
            who: dict(zip(("tensors", "resident"), sizes, strict=True)) for who, sizes in row.memory.items()
        },
        "theirs": stages(row.theirs),
        "ours": stages(row.ours),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=tuple(FAMILIES))
    parser.add_argument("--sections", nargs="+", type=int, default=(1, 3, 8))
    parser.add_argument("--side", type=int, help="pixels, high and wide")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--width", type=int, help="of the transformer")
    parser.add_argument("--blocks", type=int, help="of the transformer")
    parser.add_argument("--channels", type=int, help="of the VAE where it has most pixels")
    parser.add_argument("--order", choices=ORDERS, default="f1", help="of FramePack's sections")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu where others are busy too"
    )
    parser.add_argument("--threads", type=int, help="PyTorch's choice by default")
    parser.add_argument(
        "--no-options", dest="options", action="store_false", help="nothing that changes pixels"
    )
    parser.add_argument("--no-released", dest="released", action="store_false", help="no operations counted")
    return carry_out("peer_pipeline", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
