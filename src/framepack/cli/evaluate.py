"""``framepack evaluate``: suites of the lab, and scores of people's own videos."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from framepack.cli import options
from framepack.errors import InputError, UnknownNameError

SUITE = "A suite"
SUITES = ("rivals", "ablation", "orders", "sections", "schedules", "shift", "scale")
METRICS = "What is measured"
SCALE = "Suite scale: what videos cost by their length"


def evaluate(
    videos: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Videos to score, or folders of them.", metavar="[VIDEO|DIR]...", show_default=False
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help=f"Compare the rows of a suite: {', '.join(SUITES)}.",
            show_default=False,
            rich_help_panel=SUITE,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Checkpoint that all rows begin from.", metavar="NAME|DIR|HUB-ID", rich_help_panel=SUITE
        ),
    ] = "bundled",
    clips: Annotated[
        int | None,
        typer.Option(help="Clips of each row.", show_default="40", min=1, rich_help_panel=SUITE),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results; the same command again goes on where it was.",
            show_default="outputs/SUITE",
            rich_help_panel=SUITE,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A rough look in minutes.", rich_help_panel=SUITE)
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Long trainings and more clips, for a GPU.", rich_help_panel=SUITE)
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Row to compare; repeatable.",
            metavar="ROW",
            show_default="all",
            rich_help_panel=SUITE,
        ),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(
            "--row",
            help="Folder of videos made elsewhere, as a row; repeatable.",
            metavar="NAME=DIR",
            show_default=False,
            rich_help_panel=SUITE,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of prompts (.txt) and pictures of the same names, in place of the procedural world.",
            metavar="DIR",
            show_default=False,
            rich_help_panel=SUITE,
        ),
    ] = None,
    no_train: Annotated[
        bool,
        typer.Option("--no-train", help="All rows use the checkpoint as it is.", rich_help_panel=SUITE),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Of training and of all noise.", min=0, rich_help_panel=SUITE)
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes at once.", show_default="one a GPU, or a core", min=1, rich_help_panel=SUITE
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            help="Of another device, such as 4e14, in place of timing this one.",
            min=1,
            show_default=False,
            rich_help_panel=SCALE,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(help="Of an hour of the device.", min=0, show_default=False, rich_help_panel=SCALE),
    ] = None,
    memory: Annotated[
        float, typer.Option(help="GB that the device has.", min=0.1, rich_help_panel=SCALE)
    ] = 80.0,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="Metric by name; repeatable.",
            show_default="all that can be computed",
            rich_help_panel=METRICS,
        ),
    ] = None,
    list_metrics: Annotated[
        bool, typer.Option("--list-metrics", help="Say what there is to measure.", rich_help_panel=METRICS)
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Compare architectures, orders and schedules of long video, or score videos.

    With --suite every row is fine-tuned for as long from the same checkpoint, makes the same clips, and is
    scored; tables, plots and a report page are in the folder --out from the first row on.
    """
    from framepack.cli import evaluate_view as view

    if list_metrics:
        view.show_metrics()
        return
    if (suite is None) == (not videos):
        raise InputError("what to evaluate is not clear: give videos, or --suite")
    if videos:
        view.score_videos(videos, metric or (), device, as_json=as_json)
        return
    assert suite is not None
    if suite not in SUITES:
        raise UnknownNameError("suite", suite, SUITES)
    if quick and full:
        raise InputError("a quick look and a full run were both asked for: give one of --quick and --full")
    folder = out or Path("outputs") / suite
    command = shlex.join(["framepack", *sys.argv[1:]])
    if suite == "scale":
        view.run_scale(model, folder, device, flops_per_second, price, memory)
        return
    from framepack.evaluation.choose import Choice, chosen

    choice = Choice(
        suite=suite,
        model=model,
        budget="quick" if quick else "full" if full else "reduced",
        clips=clips,
        only=tuple(only or ()),
        others=tuple(_named_folder(text) for text in row or ()),
        prompts=prompts,
        trains=not no_train,
        seed=seed,
        metrics=tuple(metric or ()),
        device=device,
        workers=workers,
    )
    result = view.run_suite(*chosen(choice), folder, command)
    if as_json:
        typer.echo(json.dumps({"out": str(folder), "rows": {r.name: len(r.clips) for r in result.rows}}))


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (equals and name.strip() and folder):
        raise InputError(f"row '{text}': give a name and a folder, such as --row ours=outputs/ours")
    return name.strip(), Path(folder)
