"""``framepack data``: look at a folder of videos, and encode it once for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from framepack.data.clips import Cutting, Survey
    from framepack.data.videos import Found, Rejected
    from framepack.models.source import Source

app = typer.Typer(
    name="data",
    help="Look at videos with captions, and encode them once for training.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Place = Annotated[
    Path,
    typer.Argument(
        help="Folder of videos with captions, a list of them (CSV, JSONL, Parquet), or a .tar shard.",
        metavar="DIR",
        show_default=False,
    ),
]
Area = Annotated[
    str | None,
    typer.Option(
        "--area",
        help="Area of a frame, as pixels or as HEIGHTxWIDTH: buckets of that area by rule.",
        metavar="480x832|N",
        show_default="the model's buckets",
    ),
]
Longest = Annotated[
    float, typer.Option("--longest", help="Longest clip in seconds; longer videos are divided.")
]
Scenes = Annotated[
    bool, typer.Option("--scenes", help="Cut where PySceneDetect finds another scene (framepack-ai[data]).")
]


@app.command()
def check(
    place: Place,
    model: options.Model = "bundled",
    area: Area = None,
    longest: Longest = 10.0,
    scenes: Scenes = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet", help="Write a contact sheet of clips.", metavar="FILE.png", show_default=False
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show what a folder of videos gives: counts, lengths, buckets, and what is rejected and why."""
    import json

    from framepack.cli.data_view import print_survey, survey_json
    from framepack.models.source import resolve_model

    if sheet is not None:
        from framepack.video.io import check_output

        check_output(sheet, overwrite=True, suffix=".png")
    source = resolve_model(model)
    cutting = _cutting(source, area, longest, scenes)
    found, surveyed = _look(place, cutting)
    if sheet is not None:
        from framepack.data.sheet import sheet_of_clips

        sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet_of_clips(surveyed.clips).save(sheet)
    if as_json:
        typer.echo(json.dumps(survey_json(found, surveyed, cutting, model), indent=2, ensure_ascii=False))
    else:
        print_survey(found, surveyed, cutting, model)


@app.command()
def cache(
    place: Place,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", metavar="CACHE", show_default=False)],
    model: options.Model = "bundled",
    parts: Annotated[
        list[str] | None,
        typer.Option(
            "--parts",
            help="Folder or hub id with parts the model comes without; may be given again.",
            metavar="DIR|HUB-ID",
            show_default=False,
        ),
    ] = None,
    area: Area = None,
    longest: Longest = 10.0,
    scenes: Scenes = False,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the latents.", metavar="float16|bfloat16")
    ] = "float16",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    part: Annotated[
        str,
        typer.Option("--part", help="This machine's share of the files, of several that share a folder."),
    ] = "1/1",
) -> None:
    """Encode videos and captions once for training; the same command goes on where it was stopped."""
    from framepack.models.source import resolve_model

    source = resolve_model(model, parts or ())
    make_cache(place, out, source, _cutting(source, area, longest, scenes), dtype, device, part)


@app.command()
def vizdoom(
    out: Annotated[
        Path, typer.Argument(help="Folder to write, new or empty.", metavar="OUT", show_default=False)
    ],
    clips: Annotated[int, typer.Option("--clips", help="How many.")] = 64,
    frames: Annotated[int, typer.Option("--frames", help="Of each, at 8 a second.")] = 97,
    size: Annotated[str, typer.Option("--size", help="In pixels.", metavar="WxH")] = "128x128",
    seed: Annotated[int, typer.Option("--seed", help="Another one gives other walks.")] = 0,
    by_action: Annotated[
        bool,
        typer.Option("--by-action", help="A caption for the span of each action, in place of one a clip."),
    ] = False,
) -> None:
    """Write walks through VizDoom's maze, with captions that tell the actions (framepack-ai[vizdoom])."""
    from rich.markup import escape

    from framepack.data.vizdoom import write_walks
    from framepack.errors import InputError

    sides = size.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise InputError(f"--size '{size}': give WIDTHxHEIGHT, such as 128x128")
    console, bars = _bars()
    with bars:
        task = bars.add_task("walks", total=clips)
        for done in write_walks(
            out, clips, frames, (int(sides[1]), int(sides[0])), seed, by_action=by_action
        ):
            bars.update(task, completed=done)
    console.print(
        f"[bold green]done[/] {escape(str(out))}  {clips} walks; framepack data check {escape(str(out))}",
        highlight=False,
        soft_wrap=True,
    )


def make_cache(
    place: Path,
    out: Path,
    source: Source,
    cutting: Cutting,
    dtype: str = "float16",
    device: str = "auto",
    part: str = "1/1",
) -> None:
    """Encode what is found in ``place`` into the cache ``out``, or go on; told on standard error."""
    from rich.markup import escape

    from framepack.data.encoded import Encoding, plan_cache
    from framepack.data.encoding import build_cache
    from framepack.data.reader import EncodedClips
    from framepack.data.videos import find
    from framepack.models.device import pick_device
    from framepack.models.loading import load_companions

    share, found = _share(part), find(place)
    source = source.complete()
    codec, conditioner = load_companions(source, pick_device(device))
    encoding = Encoding(cutting=cutting, codec=codec, conditioner=conditioner, dtype=dtype)
    console, bars = _bars()
    plan = plan_cache(
        out, found, encoding, lambda: _survey(place, found, cutting), source.spec.spatial_stride
    )
    for rejected in plan.rejected:
        _say(console, rejected)
    remarks = conditioner.remarks([caption for caption in plan.captions if caption])
    for remark in remarks[:3]:
        _warn(console, remark)
    with bars:
        text, frames = bars.add_task("captions", total=None), bars.add_task("frames", total=None)
        whole = build_cache(
            out,
            plan,
            encoding,
            part=share,
            on_text=lambda done, total: bars.update(text, completed=done, total=total),
            on_frames=lambda done, total: bars.update(frames, completed=done, total=total),
            on_rejected=lambda rejected: _say(bars.console, rejected),
        )
    if not whole:
        console.print(f"[green]part {part} done[/]; the cache is finished by the last part", highlight=False)
        return
    made = EncodedClips(out)
    seconds = sum(entry.seconds for entry in made.entries)
    console.print(
        f"[bold green]done[/] {escape(str(out))}  {len(made)} clips, {seconds:,.1f} s, "
        f"{int(made.lengths.sum()):,} latents, {len(made.captions) - 1} captions, "
        f"{len(made.rejected)} rejected",
        highlight=False,
        soft_wrap=True,
    )


def _cutting(source: Source, area: str | None, longest: float, scenes: bool) -> Cutting:
    from framepack.data.clips import cutting_for

    return cutting_for(source.spec, area=_pixels(area), seconds=longest, scenes=scenes)


def _pixels(area: str | None) -> int | None:
    from framepack.errors import InputError

    if area is None:
        return None
    sides = area.lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise InputError(f"--area '{area}': give pixels such as 399360, or HEIGHTxWIDTH such as 480x832")
    return int(sides[0]) * (int(sides[1]) if len(sides) == 2 else 1)


def _share(part: str) -> tuple[int, int]:
    from framepack.errors import InputError

    number, _, count = part.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"--part '{part}': give I/N, such as 2/8 for the second of eight")
    return int(number) - 1, int(count)


def _look(place: Path, cutting: Cutting) -> tuple[Found, Survey]:
    from framepack.data.videos import find

    found = find(place)
    return found, _survey(place, found, cutting)


def _survey(place: Path, found: Found, cutting: Cutting) -> Survey:
    """With a bar, and what is rejected on standard error when it is known."""
    from framepack.data.clips import survey

    console, bars = _bars()
    with bars:
        task = bars.add_task("videos", total=None)
        surveyed = survey(
            place, found, cutting, lambda done, total: bars.update(task, completed=done, total=total)
        )
    for remark in surveyed.remarks:
        _warn(console, remark)
    return surveyed


def _bars() -> tuple[Console, Progress]:
    """A console on standard error, and bars with the time left on it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return console, Progress(
        TextColumn("{task.description:8}"),
        BarColumn(bar_width=36),
        MofNCompleteColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _say(console: Console, rejected: Rejected) -> None:
    from rich.markup import escape

    line = f"[yellow]rejected:[/] '{escape(rejected.name)}' {escape(rejected.reason)}"
    console.print(line, highlight=False, soft_wrap=True)


def _warn(console: Console, text: str) -> None:
    from rich.markup import escape

    console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)
