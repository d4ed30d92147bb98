"""Devices: seconds and memory of a section that several devices compute together.

Each number of devices makes the same request as ``framepack generate`` does, in turn and several times over,
every time in a process of its own, whose peak of memory is then that of one run. The first section is told
apart: the other processes are started and load the model in it. Without a model it is a HunyuanVideo of
random weights with two heads, which two devices can share.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from framepack.errors import InputError
from framepack.generation.devices import check_devices
from framepack.generation.request import GenerateRequest
from framepack.generation.selection import select
from framepack.models.device import pick_device
from framepack.models.source import resolve_model
from framepack.resources.machine import machine
from shared.peer_weights import Sizes, save_framepack
from shared.report import Report, Table, carry_out
from shared.runs import MIB, RunCost, measure

SIZES = Sizes(width=256, blocks=2, channels=4, side=256, steps=8)
EXAMPLES = Path(__file__).parent.parent / "examples"


def measured(request: GenerateRequest, threads: int | None) -> RunCost:
    """One run, in this process."""
    if threads:
        torch.set_num_threads(threads)
    return measure(request)


def alone(request: GenerateRequest, threads: int | None) -> RunCost:
    """One run, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, request, threads).result()


def section_seconds(costs: Sequence[RunCost]) -> float:
    """Of the sections after the first; the median."""
    return float(np.median([section.seconds for cost in costs for section in cost.sections[1:]]))


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    if options.model is not None:
        return compared(options, command, console)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random weights"
        save_framepack(model, SIZES)
        given = {"model": str(model), "size": f"{SIZES.side}x{SIZES.side}"}
        return compared(argparse.Namespace(**vars(options) | given), command, console)


def compared(options: argparse.Namespace, command: str, console: Console) -> Report:
    source, device = resolve_model(options.model), pick_device(options.device)
    requests = {
        count: GenerateRequest(
            model=options.model,
            prompt=options.prompt,
            image=options.image,
            method=options.method,
            seconds=options.seconds,
            steps=options.steps,
            size=options.size,
            seed=options.seed,
            device=options.device,
            dtype=options.dtype,
            devices=count,
            untrained=True,  # what is made is not looked at
        )
        for count in dict.fromkeys(options.devices)
    }
    for count, request in requests.items():  # refused before anything is run
        selection = select(request, source.spec)
        if len(selection.plan.sections) < 2:
            raise InputError(f"{options.seconds:g} seconds are one section: give more --seconds")
        if count > 1:
            check_devices(count, device, source)
    costs: dict[int, list[RunCost]] = {count: [] for count in requests}
    for turn in range(options.repeats):
        # Backwards every other time: a slow trend of the machine then cancels out.
        for count in requests if turn % 2 == 0 else reversed(requests):
            costs[count].append(alone(requests[count], options.threads))
            console.print(f"{count} devices: {costs[count][-1].wall:.2f} s", style="dim")
    base = section_seconds(costs[next(iter(requests))])
    rows = []
    for count, found in costs.items():
        seconds = section_seconds(found)
        peaks = np.median([cost.peaks for cost in found], axis=0)
        rows.append(
            (
                str(count),
                f"{seconds:.3f}",
                f"{base / seconds:.2f} x",
                f"{np.median([cost.sections[0].seconds for cost in found]):.2f}",
                f"{peaks[0] / MIB:.0f}",
                ", ".join(f"{peak / MIB:.0f}" for peak in peaks[1:]) or "-",
            )
        )
    sections = len(next(iter(costs.values()))[0].sections)
    return Report(
        name="Devices",
        command=command,
        machine=machine(str(device)),
        tables=(
            Table(
                title=f"{sections} sections of {source.spec.name}, {options.steps} steps",
                columns=(
                    *("devices", "a section, s", "against the first", "first section, s"),
                    *("peak of the first process, MiB", "peaks of the others, MiB"),
                ),
                rows=tuple(rows),
                notes=(
                    f"medians of {options.repeats} runs; a section: those after the first, in which the "
                    "other processes are started and load the model",
                    "peaks: resident on CPUs, which then share the same cores; allocated on GPUs",
                ),
            ),
        ),
        data={
            "steps": options.steps,
            "runs": [{"devices": count, **asdict(cost)} for count, found in costs.items() for cost in found],
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="name or folder; by default of random weights")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="numbers of them")
    parser.add_argument("--seconds", type=float, default=5.0, help="of video")
    parser.add_argument("--steps", type=int, default=SIZES.steps)
    parser.add_argument("--size", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", help="the model's own by default")
    parser.add_argument("--image", type=Path, default=EXAMPLES / "demo.png")
    parser.add_argument("--prompt", default=(EXAMPLES / "demo.txt").read_text().strip())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of all processes together; PyTorch's choice by default")
    parser.add_argument("--device", default="auto", help="cpu or cuda")
    parser.add_argument("--dtype", default="auto")
    return carry_out("devices", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
