"""``framepack redo``: make a section of a finished video again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.cli import options
from framepack.errors import InputError

if TYPE_CHECKING:
    from framepack.generation.run import PreparedRun


def redo(
    workdir: Annotated[Path, typer.Argument(help="Work folder of the video.", show_default=False)],
    section: Annotated[
        int | None,
        typer.Option(
            "--section", help="Its number, as `framepack generate` told it, from 1.", show_default=False
        ),
    ] = None,
    at: Annotated[
        float | None,
        typer.Option("--at", help="Or a time that it shows, in seconds.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What happens in it.", show_default="as before")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of its noise.", show_default="another one")
    ] = None,
    dependents: Annotated[
        bool, typer.Option("--dependents", help="Make those that saw it again too.")
    ] = False,
    restore: Annotated[bool, typer.Option("--restore", help="Take it as it was first made.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make one section of a video again, from what is before and after it, and write the video anew.

    All other sections stay as they are. With --dependents the section is made as it was at first, from what
    was there by then, and those that saw it are made again.
    """
    from framepack.cli.generate import summary
    from framepack.cli.progress import Progress
    from framepack.generation.saved import load_request

    if (section is None) == (at is None):
        raise InputError("which section to make again is not clear: give one of --section and --at")
    if restore and (prompt is not None or seed is not None or dependents):
        raise InputError("--restore takes a section as it was: leave --prompt, --seed and --dependents out")
    request = load_request(workdir)
    with Progress() as progress:
        with progress.busy("loading the model"):
            from framepack.generation.prepare import prepare  # brings PyTorch, which takes seconds

            run = prepare(replace(request, overwrite=overwrite))
        index = _showing(run, at) if at is not None else _numbered(run, section or 0)
        if restore:
            run.restore(index)
        else:
            run.redo(index, prompt, seed=seed, alone=not dependents)

        finished = progress.follow(run)
    progress.done(finished)
    if as_json:
        typer.echo(json.dumps({"section": index + 1, **summary(finished)}))


def _numbered(run: PreparedRun, section: int) -> int:
    count = len(run.plan.sections)
    if not 1 <= section <= count:
        raise InputError(f"section {section}: this video has 1 to {count}")
    return section - 1


def _showing(run: PreparedRun, seconds: float) -> int:
    """The section that makes what is seen at a time."""
    timeline = run.plan.shown
    frame = int(seconds * timeline.fps + 1e-6) if 0 <= seconds <= timeline.seconds else timeline.frames
    if frame >= timeline.frames:
        raise InputError(f"at {seconds:g} s: this video has 0 to {timeline.seconds:.2f} s")
    latent = timeline.latent_of(frame)
    for section in run.plan.sections:
        if latent in section.frames:
            return section.index
    raise InputError(f"at {seconds:g} s the video shows what was given: choose another time")
