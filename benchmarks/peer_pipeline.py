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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from framepack.generation.clock import peak_memory, resident_memory
from framepack.models.bundle import Bundle
from framepack.resources.machine import machine
from framepack.resources.tally import Tally
from shared.peer_tables import (
    OURS,
    Compared,
    Difference,
    Option,
    difference_table,
    faster,
    memory_table,
    option_table,
    released_table,
    time_table,
    took,
)
from shared.peers import FAMILIES, ORDERS, Made, Sizes, decoded_once, load_ours, ours, theirs
from shared.released_operations import in_network
from shared.report import Report, Table, carry_out

DEFAULTS = {
    "framepack": Sizes(width=256, blocks=2, channels=4, side=256, steps=5),
    "helios": Sizes(width=96, blocks=2, channels=4, side=256, steps=5),
}
"""By family. See above what they are meant for; Helios's were not fitted to any share."""
# Options that change pixels --------------------------------------------------------------------------


def tiles_apart(bundle: Bundle) -> Bundle:
    vae: Any = bundle.codec.vae  # type: ignore[attr-defined]
    vae.tile_sample_stride_num_frames = vae.tile_sample_min_num_frames
    return bundle


OPTIONS: dict[str, Callable[[Path], Bundle]] = {
    "transformer in bfloat16": lambda model: load_ours(model, torch.bfloat16),
    "tiles in time that do not overlap": lambda model: tiles_apart(load_ours(model)),
    "both": lambda model: tiles_apart(load_ours(model, torch.bfloat16)),
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
) -> tuple[dict[int, Compared], Made]:
    """By number of sections; and what ours made of the last one."""
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
    return found, made


def with_options(
    bench: Bench, sections: int, exact: Made, repeats: int, console: Console
) -> dict[str, Option]:
    """By name; ``exact`` is ours without any."""
    found = {}
    for name, load in OPTIONS.items():
        bundle = load(bench.model)
        bench.ours(bundle, 1)
        made = [bench.ours(bundle, sections) for _ in range(repeats)]
        found[name] = Option(
            watches=[each.watch for each in made],
            latents=Difference.of(made[-1].latents, exact.latents),
            pixels=Difference.of(made[-1].frames, exact.frames),
        )
        console.print(f"{name}: {took(found[name].watches):.1f} s", style="dim")
    return found


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    counts, clock = sorted(set(options.sections)), options.clock
    tables: list[Table] = []
    findings: list[str] = []
    data: dict[str, Any] = {"sections": counts, "families": {}}
    where = machine("cpu")
    threads = options.threads or torch.get_num_threads()
    asked = {name: getattr(options, name) for name in ("width", "blocks", "channels", "side", "steps")}
    changes = {name: value for name, value in asked.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as folder:
        for family in options.families:
            sizes = replace(DEFAULTS[family], order=options.order, **changes)
            # First of all, and with one thread: a process that is split must not have started others.
            torch.set_num_threads(1)
            bench = Bench(family, sizes, Path(folder))
            memory = {count: bench.weigh(count) for count in counts}
            torch.set_num_threads(threads)
            found, last = compare(bench, counts, options.repeats, console)
            for count, row in found.items():
                row.memory = memory[count]
            tables += [
                time_table(family, sizes, found, clock, options.repeats),
                memory_table(family, found),
                difference_table(family, found),
            ]
            rows = {str(count): row.to_json() for count, row in found.items()}
            data["families"][family] = {"sizes": vars(sizes), "by_sections": rows}
            findings.append(
                f"{bench.family.pipeline}: {OURS} is "
                + ", ".join(f"{faster(row, clock):.2f} x" for row in found.values())
                + f" as fast in total at {', '.join(map(str, counts))} sections ({clock} time)"
            )
            if family != "framepack":
                continue
            passed = data["latents_in_network"] = {count: in_network(count) for count in counts}
            findings.append(
                "latents through the VAE's network, diffusers / framepack: "
                + ", ".join(f"{one} / {other}" for one, other in passed.values())
            )
            if options.options:
                changed = with_options(bench, counts[-1], last, options.repeats, console)
                tables.append(option_table(changed, found[counts[-1]], counts[-1], clock))
                data["options"] = {name: option.to_json() for name, option in changed.items()}
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
