"""``framepack batch``: the videos of a list."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from framepack.cli import options
from framepack.cli.options import HOW, WHERE
from framepack.cli.serve import Device, Dtype, Loras, Memory, Models, Threads, not_installed, service_config
from framepack.cli.workers import LOG, WORKERS, Engine, MaxWorkers, RayAddress, on_engine, staff_of
from framepack.planning.timeline import MAX_SECONDS

FAILED = 1


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            help="Prompts, one a line (.txt), or rows with prompt, image, seconds, seed ... (.csv, .jsonl, "
            ".yaml).",
            metavar="FILE",
            show_default=False,
        ),
    ],
    seconds: options.Seconds = None,
    size: options.Size = "auto",
    method: options.Method = None,
    model: Models = None,
    loras: Loras = Path("loras"),
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            help="Seed of rows without one; of rows that are alike, each has one more than the one before.",
            min=0,
            rich_help_panel=HOW,
        ),
    ] = 0,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    memory: Memory = "full",
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    workers: Annotated[
        int,
        typer.Option("--workers", help="How many make videos at once.", min=1, rich_help_panel=WORKERS),
    ] = 1,
    engine: Engine = "processes",
    max_workers: MaxWorkers = None,
    ray_address: RayAddress = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the results.", show_default="outputs/batch-FILE", rich_help_panel=WHERE
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="Database of jobs, for workers on several machines: postgresql+psycopg://HOST/NAME.",
            metavar="URL",
            show_default="jobs.sqlite in --out",
            rich_help_panel=WHERE,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Make the videos of a list, several at once.

    Every row is checked before the first one is made. The same command again goes on where it was stopped and
    tries again what failed; after a change of the list, what is there already is kept.

    Exit code 1: some rows failed, and are listed.
    """
    folder = out or Path("outputs") / f"batch-{file.stem}"
    config = service_config(folder, store, model, loras, memory, device, dtype, threads, workers, MAX_SECONDS)
    defaults = {"seconds": seconds, "size": size, "method": method, "steps": steps, "guidance": guidance}
    try:
        from framepack.cli.batch_view import Watch
        from framepack.serving.batch import Batch, carry_out, read_batch
        from framepack.serving.engines import engine_of
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    staff = staff_of(engine, workers, max_workers, ray_address)
    config = replace(on_engine(config, engine, threads), log=config.data / LOG)
    given = {name: value for name, value in defaults.items() if value is not None}
    with Watch(folder) as watch:
        with watch.busy("reading the list"):
            videos = read_batch(file, given, config, seed)
        made = Batch(videos, config, folder)
        try:
            watch.begun(made.begin(), len(videos))
            if made.waiting:
                carry_out(made, engine_of(engine, made.store, config, staff), watch)
        finally:
            made.close()
        watch.done()
    if as_json:
        typer.echo(json.dumps(watch.summary(videos)))
    if watch.failed:
        raise typer.Exit(FAILED)
