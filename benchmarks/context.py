"""Fixed context: time and memory of a section stay what they are, however long the video.

The model makes a long video through the same path as ``framepack generate``. Beside it, in the same
process, the same model sees all earlier latent frames unpacked (every one at the base kernel), and is
stopped once a section costs over ten times the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from framepack.errors import InputError
from framepack.generation.request import GenerateRequest
from framepack.generation.selection import select
from framepack.metrics.bootstrap import bootstrap
from framepack.models.bundle import Bundle
from framepack.models.device import pick_device, pick_dtype
from framepack.models.loading import load_bundle
from framepack.models.spec import ModelSpec
from framepack.packing.schedule import Kernel, PackingSchedule, unpacked
from framepack.planning.method import Method
from framepack.resources.machine import machine
from shared.report import Report, Table, carry_out, check_file
from shared.runs import MIB, RunCost, SectionCost, measure

TARGET = 1.05
OUT_OF_HAND = 10.0
EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass(frozen=True)
class Window:
    """Sections [start, stop) of a run: median and quartiles of what each cost."""

    start: int
    stop: int
    seconds: tuple[float, float, float]
    cpu_seconds: tuple[float, float, float]
    resident: tuple[float, float, float]


def column(sections: Sequence[SectionCost], name: str) -> NDArray[np.float64]:
    return np.array([getattr(section, name) for section in sections], dtype=np.float64)


def quartiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


def windows(sections: Sequence[SectionCost], size: int, warm_up: int) -> list[Window]:
    """Whole windows of ``size`` sections, the first after ``warm_up``, the last at the end."""
    found = []
    for start in range(warm_up + (len(sections) - warm_up) % size, len(sections) - size + 1, size):
        part = sections[start : start + size]
        kinds = ("seconds", "cpu_seconds", "resident")
        found.append(Window(start, start + size, *(quartiles(column(part, kind)) for kind in kinds)))
    return found


def full_history(method: Method, base: Kernel, latent_frames: int) -> PackingSchedule:
    """Every known latent frame at the base kernel; also across the gap, where the method looks there."""
    whole = unpacked(latent_frames, base)
    return replace(whole, end=whole.levels if method.schedule.end else ())


def request_for(options: argparse.Namespace, spec: ModelSpec, sections: int) -> GenerateRequest:
    """As many sections as asked for, all of full size."""
    size = spec.method(options.method, untrained=True).section_size
    latent = sections * size + (options.image is not None)
    return GenerateRequest(
        prompt=options.prompt,
        image=options.image,
        method=options.method,
        frames=1 + (latent - 1) * spec.temporal_stride,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
    )


def baseline_request(options: argparse.Namespace, spec: ModelSpec, sections: int) -> GenerateRequest:
    request = request_for(options, spec, sections)
    method = spec.method(options.method, untrained=True)
    schedule = full_history(method, spec.base_kernel, (sections + 1) * method.section_size)
    return replace(request, schedule=str(schedule), untrained=True)


def out_of_hand(cost: RunCost) -> bool:
    """Two sections running, so that a hiccup of the machine does not count."""
    first, *later = column(cost.sections, "seconds")
    return len(later) >= 2 and min(later[-2:]) > OUT_OF_HAND * first


def run_both(options: argparse.Namespace, bundle: Bundle, console: Console) -> tuple[RunCost, RunCost | None]:
    spec = bundle.spec

    def progress(name: str) -> Callable[[RunCost, int], None]:
        def tell(cost: RunCost, sections: int) -> None:
            if len(cost.sections) % options.window == 0 or len(cost.sections) == sections:
                last = np.median(column(cost.sections[-options.window :], "seconds"))
                console.print(f"{name}: {len(cost.sections)}/{sections} sections, {last:.3f} s", style="dim")

        return tell

    # The first section is the measure of growth: make one beforehand that is not counted.
    measure(request_for(options, spec, 1), bundle)
    packed = measure(request_for(options, spec, options.sections), bundle, on_section=progress("packed"))
    if options.baseline_sections == 0:
        return packed, None
    measure(baseline_request(options, spec, 1), bundle)
    full = measure(
        baseline_request(options, spec, options.baseline_sections),
        bundle,
        stop=out_of_hand,
        on_section=progress("full history"),
    )
    return packed, full


def window_table(found: Sequence[Window]) -> Table:
    first = found[0]
    return Table(
        title="Packed context, by windows of sections",
        columns=("sections", "s a section", "quartiles", "of the first", "CPU s", "memory, MiB", "quartiles"),
        rows=tuple(
            (
                f"{w.start + 1} to {w.stop}",
                f"{w.seconds[1]:.3f}",
                f"{w.seconds[0]:.3f} to {w.seconds[2]:.3f}",
                f"{w.seconds[1] / first.seconds[1]:.3f} x",
                f"{w.cpu_seconds[1]:.3f}",
                f"{w.resident[1] / MIB:.1f}",
                f"{w.resident[0] / MIB:.1f} to {w.resident[2] / MIB:.1f}",
            )
            for w in found
        ),
        notes=("medians and quartiles; CPU s: of all threads, hardly moved by what else the machine does",),
    )


def side_by_side(packed: RunCost, full: RunCost, tokens: Sequence[Sequence[int]]) -> Table:
    """The two at the same sections, each in ratio to its own first; ``tokens`` of context, by section."""
    count = min(len(packed.sections), len(full.sections))
    shown = sorted({n for n in (1, 2, 3, 5, 8, 12, 16, 20, 30, 40, 60, 80, 120, 160, count) if n <= count})
    rows = []
    for n in shown:
        row = [str(n)]
        for cost, seen in zip((packed, full), tokens, strict=True):
            section, first = cost.sections[n - 1], cost.sections[0]
            growth = f"{section.seconds / first.seconds:.2f} x"
            row += [str(seen[n - 1]), f"{section.seconds:.3f}", growth, f"{section.resident / MIB:.0f}"]
        rows.append(tuple(row))
    return Table(
        title="Packed beside full history",
        columns=(
            *("section", "packed, tokens", "s", "of its first", "MiB"),
            *("full history, tokens", "s", "of its first", "MiB"),
        ),
        rows=tuple(rows),
        notes=(
            "tokens of context, beside those of the section itself; single sections, not medians",
            "memory of one process: full history starts where the packed run ended",
        ),
    )


def tokens_by_section(request: GenerateRequest, spec: ModelSpec) -> list[int]:
    selection = select(request, spec)
    return [section.tokens(selection.grid) for section in selection.plan.sections]


def ratios(found: Sequence[Window], packed: RunCost) -> dict[str, Any]:
    """Last window against first, with 95 % intervals."""
    first, last = found[0], found[-1]
    result = {}
    for kind in ("seconds", "cpu_seconds", "resident"):
        ends = [column(packed.sections[w.start : w.stop], kind) for w in (first, last)]
        ratio = bootstrap(*ends, statistic=lambda a, b: np.median(b, axis=1) / np.median(a, axis=1))
        result[kind] = asdict(ratio)
    return result


def findings_of(ratio: dict[str, Any], full: RunCost | None) -> list[str]:
    names = {"seconds": "time", "cpu_seconds": "CPU time", "resident": "memory"}
    lines = []
    for kind, name in names.items():
        found = ratio[kind]
        verdict = (
            ""
            if kind == "cpu_seconds"
            else f"; target {TARGET:g} " + ("met" if found["value"] <= TARGET else "missed")
        )
        lines.append(
            f"{name} of a section, last window against first: {found['value']:.3f} x "
            f"[{found['low']:.3f}, {found['high']:.3f}]{verdict}"
        )
    if full is not None:
        grown = full.sections[-1].seconds / full.sections[0].seconds
        stopped = "stopped there" if out_of_hand(full) else "the end of its run"
        lines.append(f"full history: {grown:.1f} x its first at section {len(full.sections)}, {stopped}")
    return lines


def plot(path: Path, found: Sequence[Window], packed: RunCost, full: RunCost | None) -> None:
    """Seconds and memory of every section, windows as steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    time, memory = figure.subplots(2, 1, sharex=True)
    runs = [("packed context", packed, "#1f6fb4")]
    if full is not None:
        runs.append(("full history", full, "#c8552b"))
    for label, cost, colour in runs:
        numbers = np.arange(1, len(cost.sections) + 1)
        time.plot(numbers, column(cost.sections, "seconds"), ".", ms=3, color=colour, alpha=0.5, label=label)
        memory.plot(numbers, column(cost.sections, "resident") / MIB, color=colour, lw=1.5, label=label)
    middles = [(w.start + w.stop + 1) / 2 for w in found]
    medians = np.array([w.seconds for w in found])
    time.fill_between(middles, medians[:, 0], medians[:, 2], color=runs[0][2], alpha=0.2, lw=0)
    time.plot(middles, medians[:, 1], color=runs[0][2], lw=2, label="packed, median of a window")
    time.set_ylabel("seconds a section")
    time.set_yscale("log")
    memory.set_ylabel("resident memory, MiB")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("section, in the order of generation")
    for axes in (time, memory):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    time.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    where = machine(str(device))
    bundle = load_bundle(options.model, device, pick_dtype(options.dtype, device))
    if options.plot is not None:
        check_file(options.plot, (".png",))
    if options.sections < options.warm_up + 2 * options.window:
        raise InputError(
            f"{options.sections} sections hold no two windows of {options.window} after a warm-up of "
            f"{options.warm_up}: ask for more --sections, or a smaller --window"
        )
    select(request_for(options, bundle.spec, options.sections), bundle.spec)  # refuses before the long run
    packed, full = run_both(options, bundle, console)
    found = windows(packed.sections, options.window, options.warm_up)
    ratio = ratios(found, packed)
    tables = [window_table(found)]
    if full is not None:
        requests = (
            request_for(options, bundle.spec, options.sections),
            baseline_request(options, bundle.spec, options.baseline_sections),
        )
        tokens = [tokens_by_section(request, bundle.spec) for request in requests]
        tables.append(side_by_side(packed, full, tokens))
    if options.plot is not None:
        plot(options.plot, found, packed, full)
    return Report(
        name="Fixed context",
        command=command,
        machine=where,
        tables=tuple(tables),
        findings=tuple(findings_of(ratio, full)),
        data={
            "ratio": ratio,
            "target": TARGET,
            "windows": [asdict(window) for window in found],
            "context_tokens": packed.context_tokens,
            "memory_after_decoding": packed.resident,
            "packed": [asdict(section) for section in packed.sections],
            "full_history": None if full is None else [asdict(section) for section in full.sections],
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="name or folder")
    parser.add_argument("--sections", type=int, default=400)
    parser.add_argument("--window", type=int, default=20, help="sections whose median is taken")
    parser.add_argument("--warm-up", type=int, default=20, help="sections left out at the start")
    parser.add_argument(
        "--baseline-sections",
        type=int,
        default=400,
        help="at most, with full history; stopped where it gets out of hand; 0 leaves it out",
    )
    parser.add_argument("--method", help="the model's own by default")
    parser.add_argument("--image", type=Path, default=EXAMPLES / "demo.png")
    parser.add_argument("--prompt", default=(EXAMPLES / "demo.txt").read_text().strip())
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, help="PyTorch's choice by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path, help=".png")
    return carry_out("context", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
