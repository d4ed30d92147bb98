"""``framepack train``: the bundled model from nothing, and its held-out check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RECIPES = ("codec", "bundled", "bundled-gpu")


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
        typer.Option(help="Do not train: check this model on held-out pairs.", metavar="MODEL"),
    ] = None,
    clips: Annotated[int, typer.Option(help="Held-out pairs of the check.")] = 50,
) -> None:
    """Train the bundled model on its procedural world, or check how well a model follows its prompts."""
    import json
    from dataclasses import asdict

    from framepack.errors import UnknownNameError
    from framepack.recipes.override import override

    if check is not None:
        from framepack.training.check import held_out_check

        report = held_out_check(check, clips=clips, out=out)
        typer.echo(json.dumps(report))
        return
    if recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, RECIPES)
    if recipe == "codec":
        from framepack.models.bundle import pick_device
        from framepack.training.codec import CodecTraining, train_codec

        settings = CodecTraining()
        for each in setting or []:
            settings = override(settings, each)
        if dry_run:
            typer.echo(json.dumps(asdict(settings), indent=2))
            return
        train_codec(settings, out, device=str(pick_device("auto")), workers=1)
        return

    from framepack.data.latents import codec_digest
    from framepack.models.bundle import load_part
    from framepack.models.spec import BUNDLED
    from framepack.recipes import bundled as recipes
    from framepack.training.loop import train as run

    folder = codec or BUNDLED / "codec"
    digest = codec_digest(load_part("codec", folder))
    config = {"bundled": recipes.bundled, "bundled-gpu": recipes.bundled_gpu}[recipe](digest)
    for each in setting or []:
        config = override(config, each)
    if dry_run:
        typer.echo(json.dumps(asdict(config), indent=2))
        return
    typer.echo(str(run(config, out, folder)))
