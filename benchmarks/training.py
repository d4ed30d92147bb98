"""One training step with packed context, with full history and on single images: speed, memory, batch.

The same weights are trained by the training code's own loss and optimiser on three kinds of sample, in turn
within each round, so that a machine whose speed wanders is as fast for all of them:

  packed        a section and its context as the model's method packs it
  full history  the same section and every earlier latent frame at the base kernel
  image         one frame without history, as image diffusion is trained

Before that all steps are counted on tensors without data: bytes at the peak, operations, and by them the
largest batch that fits. What is too large or too slow for this machine is counted only, and said to be.

  python benchmarks/training.py                          the bundled model
  python benchmarks/training.py --config 1b              a Wan of 1.4 B, for a GPU; counted without one
  python benchmarks/training.py --config 13b-lora        HunyuanVideo 13 B, a LoRA on one card
  python benchmarks/training.py --config 1b --layers 4 --width 384 --size 128 128 --history 0 16 64
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from framepack.errors import InputError, UnknownNameError
from framepack.models.device import pick_device
from framepack.recipes import finetune as recipes
from framepack.recipes.override import override
from framepack.resources.machine import machine
from shared.memory import GIB, MIB
from shared.outcomes import Bench, Outcome, Outcomes, faster, name_of
from shared.report import Report, Table, carry_out, check_file
from shared.subject import FULL, IMAGE, PACKED, Point, Subject, given, grid_of, random

BATCH_CLAIM, TIME_CLAIM = 4.0, 5.0
"""Of FramePack against training on whole videos: times the batch, times less time."""
RECIPES = {
    "bundled-finetune": recipes.bundled_finetune,
    "full": recipes.full,
    "lora": recipes.lora,
    "wan-1.3b-lora": recipes.wan_1_3b_lora,
    "hunyuan-13b-lora": recipes.hunyuan_13b_lora,
}
CONFIGS = {"1b": ("wan", 30, 1536, "full"), "13b-lora": ("hunyuan_video", 20, 3072, "hunyuan-13b-lora")}
"""By name: family, layers, width, recipe."""
MEMORIES = {"cpu": (1.0, 4.0), "config": (24.0, 80.0)}
"""GiB, of the model on a CPU and of a configuration for GPUs."""
NOT_RUN = "not run"


def times(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.2f} x" if value < 10 else f"{value:.0f} x"


def number(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


# Tables ------------------------------------------------------------------------------------------------


def step_table(bench: Bench, found: Outcomes, batch: int) -> Table:
    rows = []
    for point in sorted(found, key=lambda point: ((IMAGE, PACKED, FULL).index(point.kind), point.history)):
        outcome = found[point]
        measured = outcome.measured
        rows.append(
            (
                point.kind,
                "-" if point.kind == IMAGE else str(point.history),
                f"{bench.subject.tokens(point):,}",
                number(bench.operations(point, 1) / 1e9),
                f"{outcome.counted.backward / MIB:,.1f}",
                NOT_RUN if measured is None else f"{measured.backward / MIB:,.1f}",
                f"{bench.a_sample(point) / MIB:,.1f}",
                f"{(measured or outcome.counted).update / MIB:,.1f}",
                number(outcome.wall),
                number(outcome.rate),
            )
        )
    fixed = bench.counted.fixed / MIB
    return Table(
        title=f"One step, batch {batch}",
        columns=(
            *("sample", "history", "tokens", "GFLOP a sample", "counted, MiB", "measured, MiB"),
            *("MiB a sample", "optimiser, MiB", "s a step", "samples/s"),
        ),
        rows=tuple(rows),
        notes=(
            "history in latent frames; tokens: context and target",
            "counted, measured: most bytes at once during forward and backward, of a step without data and "
            "of one carried out; a sample: what one more adds; optimiser: during its step",
            f"of them {fixed:,.1f} MiB lie there between steps, for {bench.counted.parameters:,} parameters, "
            f"{bench.counted.trained:,} of them trained: weights, masters, moments, average, gradients",
            *bench.remarks(),
            "s a step: forward, backward and optimiser on latents in memory; medians",
            *left_out(found),
        ),
    )


def ratio_table(bench: Bench, found: Outcomes, histories: Sequence[int]) -> Table:
    """Full history against packed, and packed against an image, in one unit each."""

    def ratios(above: Outcome, below: Outcome) -> list[str]:
        tokens = bench.subject.tokens(above.point) / bench.subject.tokens(below.point)
        operations = bench.operations(above.point, 1) / bench.operations(below.point, 1)
        memory = bench.a_sample(above.point) / bench.a_sample(below.point)
        clocks = [faster(below, above, clock) for clock in bench.clocks.values()]
        return [times(value) for value in (tokens, operations, memory, *clocks)]

    rows = []
    for history in histories:
        packed, full = found[Point(PACKED, history)], found[Point(FULL, history)]
        rows.append((str(history), *ratios(full, packed), *ratios(packed, found[Point(IMAGE)])))
    return Table(
        title="Full history in units of packed, and packed in units of an image, at that batch",
        columns=(
            *("history", "full: tokens", "FLOP", "MiB a sample", *bench.clocks),
            *("packed: tokens", "FLOP", "MiB a sample", *bench.clocks),
        ),
        rows=tuple(rows),
        notes=(
            "time: of a step, the median of the ratios of single rounds",
            *clock_note(bench),
        ),
    )


def clock_note(bench: Bench) -> list[str]:
    told = "CPU time: of all threads, hardly moved by what else the machine is doing"
    return [told] if "CPU time" in bench.clocks else []


def batch_table(bench: Bench, found: Outcomes, memory: float, histories: Sequence[int]) -> Table:
    image = found[Point(IMAGE)]
    rows = []
    for history in histories:
        packed, full = found[Point(PACKED, history)], found[Point(FULL, history)]
        rows.append(
            (
                *(str(history), str(packed.batch), str(full.batch), over(packed.batch, full.batch)),
                *(str(image.batch), over(packed.batch, image.batch)),
                *(number(packed.rate), number(full.rate)),
                *(times(faster(packed, full, clock)) for clock in bench.clocks.values()),
                number(image.rate),
                *(times(faster(packed, image, clock)) for clock in bench.clocks.values()),
            )
        )
    return Table(
        title=f"Largest batch in {memory:g} GiB, and samples/s at it",
        columns=(
            *("history", "packed", "full", f"packed/full (claim {BATCH_CLAIM:g} x)"),
            *("image", "packed/image (claim: alike)"),
            *("packed, samples/s", "full"),
            *(f"packed/full, {name} (claim {TIME_CLAIM:g} x)" for name in bench.clocks),
            "image",
            *(f"packed/image, {name}" for name in bench.clocks),
        ),
        rows=tuple(rows),
        notes=(*clock_note(bench), *left_out(found)),
    )


def left_out(found: Outcomes) -> tuple[str, ...]:
    """A line for each reason why steps were not carried out."""
    reasons: dict[str, list[str]] = {}
    for point, outcome in found.items():
        if outcome.left_out:
            reasons.setdefault(outcome.left_out, []).append(f"{name_of(point)} ({outcome.batch})")
    return tuple(f"{NOT_RUN}, {why}: {'; '.join(names)}" for why, names in reasons.items())


def over(one: int, other: int) -> str:
    return times(one / other) if other else "none fits" if one else "-"


def batch_findings(bench: Bench, found: Outcomes, memory: float, histories: Sequence[int]) -> list[str]:
    """What the claims come to in this memory."""
    longest, image = max(histories), found[Point(IMAGE)].batch
    packed, full = found[Point(PACKED, longest)], found[Point(FULL, longest)]
    clock_name, clock = list(bench.clocks.items())[-1]
    speed = faster(packed, full, clock)
    work = bench.operations(full.point, 1) / bench.operations(packed.point, 1)
    faster_by = (
        f"{times(speed)} as fast by {clock_name}" if speed else f"by operations alone {times(work)} as fast"
    )
    lines = [
        f"{memory:g} GiB, {longest} latent frames of history: batch {packed.batch} packed, {full.batch} with "
        f"full history ({over(packed.batch, full.batch)}; claim {BATCH_CLAIM:g} x); {faster_by} (claim "
        f"{TIME_CLAIM:g} x)"
    ]
    pairs = [(h, found[Point(PACKED, h)], found[Point(FULL, h)]) for h in histories]
    batches = {h: p.batch / max(f.batch, 1) for h, p, f in pairs}
    speeds = {h: ratio for h, p, f in pairs if (ratio := faster(p, f, clock)) is not None}
    for claim, name, ratios in (
        (BATCH_CLAIM, "batch", batches),
        (TIME_CLAIM, f"speed ({clock_name})", speeds),
    ):
        reached = [h for h in ratios if all(ratio >= claim for at, ratio in ratios.items() if at >= h)]
        if ratios:
            told = f"from a history of {min(reached)} on" if reached else f"not up to {max(ratios)}"
            lines.append(f"{memory:g} GiB: {claim:g} x the {name} of full history: {told}")
    size = len(bench.subject.section(packed.point).frames)
    lines.append(
        f"{memory:g} GiB: an image's batch is {image}, packed {packed.batch} ({over(packed.batch, image)}); "
        f"in latent frames that are learnt, {size} a section, {packed.batch * size} "
        f"({over(packed.batch * size, image)})"
    )
    return lines


def agreement(all_found: Sequence[Outcomes]) -> list[str]:
    """How well peaks were counted; nothing where no step was carried out."""
    outcomes = [outcome for found in all_found for outcome in found.values()]
    apart = [abs(each.measured.most / each.counted.most - 1) for each in outcomes if each.measured]
    if not apart:
        return ["no step was carried out: all numbers are counted"]
    return [f"counted against measured peaks of {len(apart)} steps: at most {max(apart):.2%} apart"]


def plot(path: Path, bench: Bench, found: Outcomes, histories: Sequence[int], batch: int) -> None:
    """Memory and samples a second against history; hollow where a step was only counted."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for kind, colour in ((PACKED, "#1f6fb4"), (FULL, "#c8552b"), (IMAGE, "#5a8f3c")):
        points = [Point(kind, 0 if kind == IMAGE else history) for history in histories]
        outcomes = [found[point] for point in points]
        line = {"color": colour, "lw": 1.5, "ls": "--" if kind == IMAGE else "-"}
        upper.plot(histories, [each.counted.backward / MIB for each in outcomes], **line, label=kind)
        for history, each in zip(histories, outcomes, strict=True):
            filled = colour if each.measured else "white"
            upper.plot(history, each.counted.backward / MIB, "o", ms=5, color=colour, mfc=filled)
        ran = [(history, each.rate) for history, each in zip(histories, outcomes, strict=True) if each.rate]
        if ran:
            lower.plot(*zip(*ran, strict=True), "o", ms=5, **line)
    upper.set_ylabel("peak memory, MiB")
    lower.set_ylabel("samples a second")
    lower.set_xlabel("history, latent frames")
    for axes in (upper, lower):
        axes.set_xscale("symlog", base=2, linthresh=4)
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(FixedLocator(list(histories)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
    upper.legend(frameon=False, title=f"batch {batch}; hollow: counted, not run")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


# The run -----------------------------------------------------------------------------------------------


def subject_of(options: argparse.Namespace) -> Subject:
    """What the options ask for.

    Raises:
        UnknownNameError, InputError, ModelError: they ask for what there is not.
    """
    recipe = options.recipe or (CONFIGS[options.config][3] if options.config else "bundled-finetune")
    if recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, tuple(RECIPES))

    def change(config: Any) -> Any:
        return override(config, *options.set)

    if options.config is None:
        if options.layers or options.width:
            raise InputError("--layers and --width are for random weights: add --config")
        subject = given(options.model, RECIPES[recipe], change)
    else:
        family, layers, width, _ = CONFIGS[options.config]
        sizes = (options.layers or layers, options.width or width)
        subject = random(family, options.config, *sizes, RECIPES[recipe], change)
    if subject.config.optimiser != "adamw":
        raise InputError(f"optimiser {subject.config.optimiser} cannot be counted: leave adamw")
    method = subject.spec.method(options.method, untrained=True)
    if options.section is not None:
        method = replace(method, section_size=options.section)
    grid = grid_of(subject.spec, options.size) if options.size else subject.latent_grid
    return replace(subject, method=replace(method, discretized=False), latent_grid=grid)


def points_of(histories: Sequence[int]) -> list[Point]:
    return [Point(IMAGE), *(Point(kind, history) for history in histories for kind in (PACKED, FULL))]


def check(options: argparse.Namespace) -> None:
    counts = {"--batch": [options.batch], "--repeats": [options.repeats], "--history": options.history}
    for name, values in counts.items():
        lowest = 0 if name == "--history" else 1
        if min(values) < lowest:
            raise InputError(f"{name} {min(values)}: give whole numbers of at least {lowest}")
    if min([options.limit, *(options.memory or ())]) < 0:
        raise InputError("--limit and --memory must not be below 0")
    if options.config is not None and options.config not in CONFIGS:
        raise UnknownNameError("config", options.config, tuple(CONFIGS))
    if options.plot is not None:
        check_file(options.plot, (".png",))


def room_on(device: torch.device) -> float:
    """Bytes that a step may take: of a GPU all, of this machine nearly all that is free."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return 0.9 * psutil.virtual_memory().available


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    where = machine(str(device))
    room = options.limit_memory * GIB if options.limit_memory else room_on(device)
    bench = Bench(subject_of(options), device, room, options.limit)
    histories = sorted(set(options.history))
    points = points_of(histories)

    def tell(line: str) -> None:
        console.print(line, style="dim", highlight=False)

    found = bench.run([(point, options.batch) for point in points], options.repeats, tell)
    tables = [step_table(bench, found, options.batch), ratio_table(bench, found, histories)]
    memories = options.memory or MEMORIES["cpu" if options.config is None else "config"]
    by_memory: dict[float, Outcomes] = {}
    findings = []
    for memory in memories:
        batches = {point: bench.largest(point, memory * GIB) for point in points}
        tell(f"{memory:g} GiB: {', '.join(f'{name_of(p)}: {n}' for p, n in batches.items())}")
        fitting = [(point, batch) for point, batch in batches.items() if batch]
        ran = bench.run(fitting, options.repeats, tell)
        missing = [point for point in points if point not in ran]
        by_memory[memory] = ran | {p: Outcome(p, 0, bench.counted.peaks(p, 1)) for p in missing}
        tables.append(batch_table(bench, by_memory[memory], memory, histories))
        findings += batch_findings(bench, by_memory[memory], memory, histories)
    if options.plot is not None:
        plot(options.plot, bench, found, histories, options.batch)

    def record(outcomes: Outcomes) -> list[dict[str, Any]]:
        return [
            asdict(outcome)
            | {"tokens": bench.subject.tokens(point), "operations": bench.operations(point, 1)}
            for point, outcome in outcomes.items()
        ]

    return Report(
        name="Training",
        command=command,
        machine=where,
        tables=tuple(tables),
        findings=(*findings, *agreement([found, *by_memory.values()])),
        data={
            "model": bench.subject.spec.name,
            "method": str(bench.subject.method),
            "latent_grid": bench.subject.latent_grid,
            "config": asdict(bench.subject.config),
            "parameters": bench.counted.parameters,
            "trained": bench.counted.trained,
            "fixed": bench.counted.fixed,
            "claims": {"batch": BATCH_CLAIM, "time": TIME_CLAIM},
            "batch": options.batch,
            "steps": record(found),
            "largest": {f"{memory:g}": record(outcomes) for memory, outcomes in by_memory.items()},
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="name or folder")
    parser.add_argument("--config", help=f"random weights in its place: {', '.join(CONFIGS)}")
    parser.add_argument("--layers", type=int, help="of --config")
    parser.add_argument("--width", type=int, help="of --config, in heads of 128")
    parser.add_argument("--recipe", help=f"how it is trained: {', '.join(RECIPES)}")
    parser.add_argument(
        "--set", action="append", default=[], help="path=value in the recipe; may be repeated"
    )
    parser.add_argument("--method", help="the model's own by default")
    parser.add_argument("--section", type=int, help="latent frames; the method's own by default")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="px; the model's first bucket")
    parser.add_argument("--history", type=int, nargs="+", default=[0, 4, 16, 64, 256], help="latent frames")
    parser.add_argument("--batch", type=int, default=1, help="of the first tables")
    parser.add_argument("--memory", type=float, nargs="+", help="GiB that the largest batch is sought for")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument(
        "--limit", type=float, default=6.0, help="s; longer steps are only counted, and with 0 all are"
    )
    parser.add_argument("--limit-memory", type=float, help="GiB, likewise; nearly all by default")
    parser.add_argument("--threads", type=int, help="PyTorch's choice by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path, help=".png")
    return carry_out("training", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
