"""``framepack estimate``: what a video or training needs, and what fits; nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.cli import options
from framepack.cli.options import HOW, WHAT
from framepack.errors import InputError
from framepack.resources.machine import GB
from framepack.video.buckets import read_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from framepack.resources.estimate import Estimate

MACHINE = "The machine"
TRAINING = "Training"


def estimate(
    seconds: Annotated[
        float,
        typer.Option("--seconds", help="Length in seconds; of training, of a clip.", rich_help_panel=WHAT),
    ] = 5.0,
    size: Annotated[
        str,
        typer.Option(
            "--size",
            help="WIDTHxHEIGHT in pixels; 'auto' is the model's first.",
            metavar="auto|WxH",
            rich_help_panel=WHAT,
        ),
    ] = "auto",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="bundled, a model folder or file, a hub id, or a published size: base, lite, extended, "
            "wan-1.3b, wan-5b, wan-14b.",
            metavar="NAME|DIR|FILE|HUB-ID",
            rich_help_panel=HOW,
        ),
    ] = "bundled",
    method: options.Method = None,
    schedule: options.Schedule = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="What the transformer computes in: auto, float32, bfloat16 or float16.",
            rich_help_panel=HOW,
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(
            "--device",
            help="auto, cpu, cuda or mps; auto is this machine's, or a GPU where --memory is given.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto",
    devices: Annotated[
        int,
        typer.Option(
            "--devices",
            help="How many GPUs make each section together, or share a training.",
            rich_help_panel=MACHINE,
        ),
    ] = 1,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            help="GB that each device has.",
            show_default="this machine's",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    system_memory: Annotated[
        float | None,
        typer.Option(
            "--system-memory",
            help="GB that the system has beside it.",
            show_default="this machine's",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            "--flops-per-second",
            help="Of the device, such as 1e14; without it, no times.",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    bandwidth: Annotated[
        float,
        typer.Option(
            "--bandwidth", help="GB a second from system memory to the device.", rich_help_panel=MACHINE
        ),
    ] = 12.0,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            help="Tell of training in place of a video: a recipe of `framepack train`, such as full or lora.",
            metavar="RECIPE",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a field of it: path=value, such as lora.rank=64 or checkpointing=false. May be "
            "repeated.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            help="Samples on each device.",
            show_default="the most that fit",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    section: Annotated[
        list[int] | None,
        typer.Option(
            "--section",
            help="Latent frames of a section. May be repeated.",
            show_default="1, 3, 5, 9",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what a video needs before anything is loaded, and which memory policy fits; or what training needs,
    and which batch fits.

    Bytes and operations are counted on the model's own code, without its weights.
    """
    import json

    from rich.console import Console

    pixels = None if size == "auto" else read_size(size, "832x480")
    console = Console(stderr=True)
    if train is not None:
        from framepack.cli.estimate_training import count, show_training

        of_video = {
            "--steps": steps,
            "--guidance": guidance,
            "--system-memory": system_memory,
        }
        _refuse(of_video, "is for videos: leave it out, or leave out --train")
        with console.status("counting") as status:
            told = count(
                train,
                [*(setting or ()), *([] if dtype == "auto" else [f"dtype={dtype}"])],
                model,
                pixels,
                method,
                schedule,
                sections=section,
                seconds=seconds,
                devices=devices,
                batch=batch,
                device=device,
                memory=memory,
                flops_per_second=flops_per_second,
                tell=lambda line: status.update(f"counting: {line}"),
            )
        if as_json:
            typer.echo(json.dumps(told.to_json()))
        else:
            show_training(told, Console(highlight=False))
        return
    of_training = {"--set": setting, "--batch": batch, "--section": section}
    _refuse(of_training, "is for training: add --train, or leave it out")
    with console.status("counting") as status:
        from framepack.resources.estimate import estimate as work_out

        found = work_out(
            model,
            size=pixels,
            seconds=seconds,
            method=method,
            schedule=schedule,
            steps=steps,
            guidance=guidance,
            device=device,
            devices=devices,
            dtype=dtype,
            memory=memory,
            system=system_memory,
            flops_per_second=flops_per_second,
            bandwidth=bandwidth,
            tell=lambda line: status.update(f"counting: {line}"),
        )
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        show(found, Console(highlight=False))


def _refuse(given: Mapping[str, object], rule: str) -> None:
    """Raises InputError for the first option that was given."""
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} {rule}")


# Shown ---------------------------------------------------------------------------------------------------


def show(found: Estimate, console: Console) -> None:
    """Stages, then policies, then what the numbers hang on."""
    own, context = found.tokens
    height, width = found.size
    console.print(
        f"[bold]{found.model}[/], {width} x {height}: {found.frames:,} frames at {found.fps:g} fps "
        f"({found.frames / found.fps:.1f} s) in {found.sections:,} sections of up to {own:,} tokens that see "
        f"{context:,}, {found.calls:,} calls of {found.section_operations / found.steps:.3g} FLOP at most; "
        f"{found.dtype} on {f'{found.devices} x ' if found.devices > 1 else ''}{found.device}",
        markup=True,
    )
    console.print(_stages(found))
    console.print(_policies(found))
    console.print(f"  {_verdict(found)}", markup=False, style="bold")
    for line in found.assumptions:
        console.print(f"  {line}", style="dim", markup=False)


def table_of(title: str, columns: tuple[str, ...]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 or column == "but" else "right")
    return table


def _stages(found: Estimate) -> Table:
    table = table_of("Stages", ("part", "weights", "at work", "FLOP"))
    for stage in found.stages:
        flop = f"{stage.operations:.3g}"
        table.add_row(
            f"{stage.name} [dim]{stage.what}[/]", in_gb(stage.weights), in_gb(stage.activations), flop
        )
    return table


def _policies(found: Estimate) -> Table:
    gpu = found.device.startswith("cuda")
    last = ("time",) if found.timed else ()
    several = found.devices > 1
    where = "each GPU" if several else "GPU" if gpu else "memory"
    columns = ("policy", where, "of it in", *(("system", "moved") if gpu else ()), *last)
    given = f"{found.memory / GB:.4g} GB" + (f" on each of {found.devices} GPUs" if several else "")
    given += f", system {found.system / GB:.4g} GB" if gpu else ""
    table = table_of(f"Policies, with {given}", ("", *columns, "but"))
    chosen = found.chosen
    for choice in found.choices:
        fits = choice.fits and choice.fits_system
        mark = "[green]fits[/]" if fits else "[red]no[/]"
        held = _each(choice.devices) if several else in_gb(choice.device)
        cells = [mark, choice.policy.name, held if choice.fits else f"[red]{held}[/]", choice.stage]
        if gpu:
            cells += [_over(choice.system, choice.fits_system), in_gb(choice.moved)]
        if found.timed:
            cells.append(in_time(choice.seconds))
        style = "bold" if choice is chosen else "" if fits else "dim"
        table.add_row(*cells, ", ".join(choice.policy.changes), style=style)
    return table


def _verdict(found: Estimate) -> str:
    chosen = found.chosen
    if chosen is not None:
        changes = f", with {' and '.join(chosen.policy.changes)}" if chosen.policy.changes else ""
        return f"auto takes {chosen.policy.name}{changes}"
    room = (found.memory, found.system)
    least = min(found.choices, key=lambda c: max(c.device - room[0], 0) + max(c.system - room[1], 0))
    beside = f" and {in_gb(least.system)} of system memory" if least.system else ""
    return f"nothing fits: {least.policy.name} comes nearest, and needs {in_gb(least.device)}{beside}"


def in_gb(count: float) -> str:
    if count >= 10 * GB:
        return f"{count / GB:.1f} GB"
    return f"{count / GB:.2f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"


def _each(counts: Sequence[float]) -> str:
    """Of one device after the other, those alike together."""
    alike = [(text, len([*group])) for text, group in groupby(map(in_gb, counts))]
    return ", ".join(f"{times} x {text}" if times > 1 else text for text, times in alike)


def _over(count: float, fits: bool) -> str:
    return in_gb(count) if fits else f"[red]{in_gb(count)}[/]"


def in_time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
