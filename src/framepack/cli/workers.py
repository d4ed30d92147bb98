"""Options on who makes the videos, for the verbs that have workers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from framepack.serving.config import ServiceConfig
    from framepack.serving.engines import Staff

PROCESSES, RAY = "processes", "ray"
WORKERS = "Who makes them"
LOG = "workers.log"

Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Workers are processes of this machine, or actors of Ray on many.",
        metavar=f"{PROCESSES}|{RAY}",
        rich_help_panel=WORKERS,
    ),
]
MaxWorkers = Annotated[
    int | None,
    typer.Option(
        "--max-workers",
        help="With Ray there are as many as videos wait: --workers at least, and so many at most.",
        min=1,
        show_default="what the cluster has room for",
        rich_help_panel=WORKERS,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Ray's cluster: local for one of its own, auto for that of this machine, or where it is.",
        metavar="local|auto|HOST:PORT",
        show_default="local",
        rich_help_panel=WORKERS,
    ),
]


def staff_of(engine: str, workers: int, max_workers: int | None, ray_address: str | None) -> Staff:
    """How many workers, and where. Raises InputError: options that the engine has no use for."""
    from framepack.serving.engines import ENGINES, Staff

    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, list(ENGINES))
    for name, given in (("--max-workers", max_workers), ("--ray-address", ray_address)):
        if given is not None and engine != RAY:
            raise InputError(f"{name} is of Ray's workers: give --engine {RAY} with it, or leave it out")
    if max_workers is not None and max_workers < workers:
        raise InputError(f"--workers {workers} is more than --max-workers {max_workers}: give fewer, or more")
    return Staff(workers=workers, most=max_workers, address=ray_address or "local")


def on_engine(config: ServiceConfig, engine: str, threads: int | None) -> ServiceConfig:
    """The service as an engine takes it: with Ray, threads go by the cluster's machines, and what workers say
    on them goes to a file in the service's folder."""
    return replace(config, threads=threads, log=config.data / LOG) if engine == RAY else config
