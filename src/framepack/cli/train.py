"""``framepack train``: the bundled model from nothing, and its held-out check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from framepack.training.config import TrainConfig

RECIPES = ("codec", "bundled", "bundled-gpu")
CHECK = "Checking a model"


def train(
    recipe: Annotated[str, typer.Option(help=f"What to train: {', '.join(RECIPES)}.")] = "bundled",
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command again resumes.")] = Path(
        "runs/train"
    ),
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
        str, typer.Option(help="Where the check or the codec runs: auto, cpu, cuda or mps.")
    ] = "auto",
) -> None:
    """Train the bundled model on its procedural world, or check how well a model follows its prompts."""
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
    from framepack.data.latents import codec_digest
    from framepack.models.loading import load_part
    from framepack.recipes import bundled as recipes
    from framepack.recipes.override import override

    make = {"bundled": recipes.bundled, "bundled-gpu": recipes.bundled_gpu}[recipe]
    return override(make(codec_digest(load_part("codec", codec))), *settings)


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
