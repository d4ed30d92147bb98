"""``framepack train``: the bundled model from nothing and its held-out check, and any model on real clips."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from framepack.models.source import Source
    from framepack.training.config import TrainConfig

FINE_TUNES = ("lora", "full", "wan-1.3b-lora", "hunyuan-13b-lora", "bundled-finetune")
RECIPES = ("codec", "bundled", "bundled-gpu", *FINE_TUNES)
CHECK = "Checking a model"
TUNE = "Fine-tuning on real clips"


def train(
    recipe: Annotated[str, typer.Option(help=f"What to train: {', '.join(RECIPES)}.")] = "bundled",
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command again resumes.")] = Path(
        "runs/train"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            help="Packed model to fine-tune: a folder, a hub id or 'bundled'.",
            show_default="bundled, for bundled-finetune",
            rich_help_panel=TUNE,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Videos, as `framepack data cache` takes them, or a cache that it made.",
            metavar="DIR|LIST|CACHE",
            show_default=False,
            rich_help_panel=TUNE,
        ),
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or hub id of what the model comes without. May be repeated.",
            show_default=False,
            rich_help_panel=TUNE,
        ),
    ] = None,
    codec: Annotated[
        Path | None, typer.Option(help="Codec folder; default: the bundled one.", show_default=False)
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field: path=value. May be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration and stop.")] = False,
    check: Annotated[
        str | None,
        typer.Option(
            help="Do not train: check on held-out pairs what this model can do.",
            metavar="MODEL",
            rich_help_panel=CHECK,
        ),
    ] = None,
    clips: Annotated[int, typer.Option(help="Held-out pairs.", min=1, rich_help_panel=CHECK)] = 50,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method to check. May be repeated.", show_default="the model's", rich_help_panel=CHECK
        ),
    ] = None,
    ability: Annotated[
        list[str] | None,
        typer.Option(
            help="image-to-video, text-to-video, end-keyframe, middle-keyframe, filled-gap, prompt-change "
            "or far-end. May be repeated.",
            show_default="all",
            rich_help_panel=CHECK,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale of the check.", show_default="the model's", rich_help_panel=CHECK, min=0
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the check, the codec or fine-tuning runs: auto, cpu, cuda or mps.")
    ] = "auto",
) -> None:
    """Train the bundled model on its procedural world, fine-tune any packed model on real clips, or check how
    well a model follows its prompts."""
    from framepack.errors import UnknownNameError
    from framepack.generation.places import probe

    if check is not None:
        probe(out)
        _check(check, out, clips, method or (), ability or (), guidance, device)
        return
    if recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, RECIPES)
    if recipe == "codec":
        from framepack.models.device import pick_device
        from framepack.recipes.override import override
        from framepack.training.codec import CodecTraining, train_codec

        settings = override(CodecTraining(), *(setting or ()))
        if dry_run:
            _print(settings)
            return
        probe(out)
        train_codec(settings, out, device=str(pick_device(device)), workers=1)
        return
    if recipe in FINE_TUNES:
        _fine_tune(recipe, model, data, parts or (), out, [f"device={device}", *(setting or ())], dry_run)
        return

    from framepack.models.spec import BUNDLED
    from framepack.training.loop import train as run

    folder = codec or BUNDLED / "codec"
    config = _config(recipe, folder, setting or ())
    if dry_run:
        _print(config)
        return
    probe(out)
    typer.echo(str(run(config, out, folder)))


def _config(recipe: str, codec: Path, settings: Sequence[str]) -> TrainConfig:
    from framepack.data.fingerprint import module_digest
    from framepack.models.loading import load_part
    from framepack.recipes import bundled as recipes
    from framepack.recipes.override import override

    make = {"bundled": recipes.bundled, "bundled-gpu": recipes.bundled_gpu}[recipe]
    return override(make(module_digest(load_part("codec", codec))), *settings)


def _fine_tune(
    recipe: str,
    model: str | None,
    data: Path | None,
    parts: Sequence[str],
    out: Path,
    settings: Sequence[str],
    dry_run: bool,
) -> None:
    from framepack.cli.report_view import print_report
    from framepack.errors import InputError
    from framepack.generation.places import probe
    from framepack.models.source import resolve_model
    from framepack.recipes.override import override
    from framepack.training.finetune import finetune, taught_methods
    from framepack.training.report import report_of

    if model is None and recipe != "bundled-finetune":
        raise InputError(f"recipe {recipe} starts from a model: add --model")
    source = resolve_model(model or "bundled", parts)
    config = override(fine_tune_recipe(recipe)(source.spec), *settings)
    taught_methods(config, source.spec)
    if dry_run:
        _print(config)
        return
    if data is None:
        raise InputError(
            f"recipe {recipe} learns from clips: give a folder of videos, or make a cache with "
            "`framepack data cache`, and add --data"
        )
    probe(out)
    made = finetune(config, out, source, _cache(data, out, source, config.device))
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes the first speaks
    report = report_of(out) if config.held_out else {}
    if report:
        print_report(report, out)
    elif config.held_out:
        typer.echo("no report on held-out ends: it is made on one process", err=True)
    typer.echo(str(made))


def fine_tune_recipe(name: str) -> Any:
    """What makes the configuration of a recipe for a model's spec. Raises UnknownNameError."""
    from framepack.errors import UnknownNameError
    from framepack.recipes import finetune

    if name not in FINE_TUNES:
        raise UnknownNameError("recipe", name, FINE_TUNES)
    return getattr(finetune, name.replace("-", "_").replace(".", "_"))


def _cache(data: Path, out: Path, source: Source, device: str) -> Path:
    """``data`` itself if it is a cache, else one of the videos there, made in the run's folder.

    Raises:
        InputError: several processes, which would all make it.
    """
    from framepack.cli.data import make_cache
    from framepack.data.clips import cutting_for
    from framepack.data.encoded import MANIFEST, PLAN
    from framepack.errors import InputError

    if any((data / name).is_file() for name in (MANIFEST, PLAN)):
        return data
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"'{data}' is no cache, and several processes train: make one with `framepack data cache` first"
        )
    make_cache(data, out / "cache", source, cutting_for(source.spec), device=device)
    return out / "cache"


def _print(settings: Any) -> None:
    import json
    from dataclasses import asdict

    typer.echo(json.dumps(asdict(settings), indent=2))


def _check(
    model: str,
    out: Path,
    clips: int,
    methods: Sequence[str],
    abilities: Sequence[str],
    guidance: float | None,
    device: str,
) -> None:
    """A line of JSON on standard output for each row as it is done; all of them, and sheets, in ``out``."""
    import json

    from framepack.models.device import pick_device, pick_dtype
    from framepack.models.loading import load_bundle
    from framepack.training.check import held_out_check
    from framepack.training.progress import progress

    place = pick_device(device)
    bundle = load_bundle(model, place, pick_dtype("auto", place))
    done = []
    with progress() as bars:
        rows = held_out_check(
            bundle, methods, clips=clips, guidance=guidance, only=abilities, on_clips=bars.show
        )
        out.mkdir(parents=True, exist_ok=True)
        for row in rows:
            row.save_sheets(out)
            done.append(row.to_json())
            (out / "check.json").write_text(
                json.dumps({"model": model, "digest": bundle.digest, "rows": done}, indent=2) + "\n"
            )
            typer.echo(json.dumps(done[-1]))
