"""``framepack adopt``: give a base the packing kernels, or make a variant of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from framepack.models.adopt import Adopted


def adopt(
    base: Annotated[
        Path,
        typer.Option(
            "--base",
            help="Diffusers folder of HunyuanVideo, FramePack or Wan: a pipeline's, or its transformer's.",
            metavar="DIR",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", metavar="DIR", show_default=False)],
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="Packing of the history: a name such as temporal or geometric, lambda=2, budget=2.625, or "
            "levels such as td_f16k4f2k2f1k1.",
            metavar="STRING",
            show_default="the variant's or method's",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="Size to make of a HunyuanVideo base: lite drops layers, extended repeats them.",
            metavar="lite|extended|base",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Method that the model will be fine-tuned for, by name or as a string; may be given again, "
            "the first is the default.",
            metavar="NAME",
            show_default="inverted for HunyuanVideo, f1 for Wan",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model that --out holds.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Give a base the packing kernels, so that it can be fine-tuned on packed history.

    Reads and writes weights piece by piece: memory stays small whatever the size of the base.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from framepack.models.adopt import adopt as run

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:8}"),
        BarColumn(bar_width=36),
        DownloadColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task("adopt", total=None)
        adopted = run(
            base,
            out,
            schedule=schedule,
            variant=variant,
            methods=method or (),
            overwrite=overwrite,
            on_bytes=lambda done, total: bars.update(task, completed=done, total=total),
        )
    _print(adopted, console)
    if as_json:
        typer.echo(json.dumps(asdict(adopted), indent=2))


def _print(adopted: Adopted, console: Console) -> None:
    from rich.markup import escape

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    say(
        f"[bold green]done[/] {escape(adopted.out)}  {adopted.parameters:,} parameters, "
        f"{_size(adopted.bytes)} in {adopted.shards} file{'s' * (adopted.shards > 1)}, "
        f"in {adopted.seconds:.1f} s"
    )
    for name, text in adopted.methods.items():
        say(f"method {escape(name)}: {escape(text)}")
    made, kept = (", ".join(names) or "none" for names in (adopted.kernels_made, adopted.kernels_kept))
    say(f"kernels made: {made}; brought by the base: {kept}")
    for stack, order in adopted.layers.items():
        say(f"{stack}: {adopted.base_layers[stack]} became {len(order)}")
    for part, counts in adopted.parts.items():
        say(f"{part}: {counts['linked']} files linked, {counts['copied']} copied")
    say(
        f"memory: {_size(adopted.peak_bytes)} of tensors at most, "
        f"the largest file has {_size(adopted.largest_shard_bytes)}"
    )
    say("It needs a fine-tune before it gives good video; README.md there says what is new.")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
