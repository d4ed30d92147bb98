"""Speed: seconds of video made in a second, and where the time goes.

Every combination of guidance (off, the model's own) and precision makes the same request through the
same path as ``framepack generate``, in turn and several times over, so that what else the machine
does falls on all of them alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from framepack.generation.request import GenerateRequest
from framepack.generation.selection import select
from framepack.models.device import pick_device
from framepack.models.loading import load_bundle
from framepack.resources.machine import machine
from shared.report import Report, Table, carry_out
from shared.runs import RunCost, measure

STAGES = ("pack", "sample", "store", "decode", "encode")
EXAMPLES = Path(__file__).parent.parent / "examples"


def split(cost: RunCost) -> dict[str, float]:
    """Seconds by stage; ``other`` is the rest of the run's wall time, loading the model not counted."""
    stages = {stage: cost.stages.get(stage, 0.0) for stage in STAGES}
    return stages | {"other": max(0.0, cost.wall - sum(stages.values()))}


def middle(values: Sequence[float]) -> float:
    return float(np.median(values))


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    where = machine(str(device))
    bundles = {name: load_bundle(options.model, device, getattr(torch, name)) for name in options.dtypes}
    spec = next(iter(bundles.values())).spec
    scales = [1.0, spec.guidance if options.guidance is None else options.guidance]
    kinds = [(dtype, scale) for dtype in options.dtypes for scale in dict.fromkeys(scales)]

    def request(scale: float, seconds: float) -> GenerateRequest:
        return GenerateRequest(
            prompt=options.prompt,
            image=options.image,
            method=options.method,
            seconds=seconds,
            steps=options.steps,
            guidance=scale,
            seed=options.seed,
        )

    select(request(scales[0], options.seconds), spec)  # refuses before anything is run
    # One section of each first: libraries choose their kernels on first use.
    section = spec.method(options.method).section_size * spec.temporal_stride
    for dtype, scale in kinds:
        measure(request(scale, (section + 1) / spec.fps), bundles[dtype])
    costs: dict[tuple[str, float], list[RunCost]] = {kind: [] for kind in kinds}
    for turn in range(options.repeats):
        # Backwards every other time: a slow trend of the machine then cancels out.
        for kind in kinds if turn % 2 == 0 else reversed(kinds):
            costs[kind].append(measure(request(kind[1], options.seconds), bundles[kind[0]]))
            done = costs[kind][-1]
            console.print(f"{kind[0]}, guidance {kind[1]:g}: {done.wall:.2f} s", style="dim")

    rates = {kind: [c.frames / c.fps / c.wall for c in found] for kind, found in costs.items()}
    base = middle(rates[kinds[0]])
    shares = {
        kind: {stage: middle([split(c)[stage] for c in found]) for stage in (*STAGES, "other")}
        for kind, found in costs.items()
    }
    first = costs[kinds[0]][0]
    video = first.frames / first.fps
    return Report(
        name="Speed",
        command=command,
        machine=where,
        tables=(
            Table(
                title=f"{video:g} s of video at {spec.fps:g} fps, {options.steps} steps, "
                f"{len(first.sections)} sections",
                columns=("precision, guidance", "s of video a s", "spread", "against the first", "wall, s"),
                rows=tuple(
                    (
                        _label(kind),
                        f"{middle(rates[kind]):.2f}",
                        spread(rates[kind]),
                        f"{middle(rates[kind]) / base:.2f} x",
                        f"{middle([c.wall for c in costs[kind]]):.2f}",
                    )
                    for kind in kinds
                ),
                notes=(
                    f"medians of {options.repeats} runs, from the start of the run to the video on disk, "
                    "loading the model not counted; above 1 is faster than real time",
                ),
            ),
            Table(
                title="Where the time goes, s (share)",
                columns=("precision, guidance", *STAGES, "other"),
                rows=tuple(
                    (_label(kind), *(_share(seconds, shares[kind]) for seconds in shares[kind].values()))
                    for kind in kinds
                ),
                notes=("medians; other: choosing the context, keys of sections, syncing the video to disk",),
            ),
        ),
        findings=tuple(
            f"{_label(kind)}: {middle(rates[kind]):.2f} s of video a second, "
            f"{'faster' if middle(rates[kind]) > 1 else 'slower'} than real time at {spec.fps:g} fps"
            for kind in kinds
        ),
        data={
            "steps": options.steps,
            "seconds_of_video": video,
            "fps": spec.fps,
            "runs": [_run_json(kind, cost) for kind in kinds for cost in costs[kind]],
        },
    )


def _label(kind: tuple[str, float]) -> str:
    return f"{kind[0]}, {'off' if kind[1] == 1.0 else f'{kind[1]:g}'}"


def _share(seconds: float, stages: dict[str, float]) -> str:
    return f"{seconds:.2f} ({seconds / max(sum(stages.values()), 1e-9):.0%})"


def _run_json(kind: tuple[str, float], cost: RunCost) -> dict[str, Any]:
    return {"dtype": kind[0], "guidance": kind[1], "wall": cost.wall, "stages": split(cost)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="name or folder")
    parser.add_argument("--seconds", type=float, default=10.0, help="of video")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, help="beside none; the model's own by default")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", help="the model's own by default")
    parser.add_argument("--image", type=Path, default=EXAMPLES / "demo.png")
    parser.add_argument("--prompt", default=(EXAMPLES / "demo.txt").read_text().strip())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="PyTorch's choice by default")
    parser.add_argument("--device", default="auto")
    return carry_out("speed", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
