"""``framepack serve``: a page and an API, with workers of its own; ``framepack worker``: one more of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.cli.workers import WORKERS, Engine, MaxWorkers, RayAddress, on_engine, staff_of
from framepack.errors import InputError

if TYPE_CHECKING:
    from framepack.serving.clients import Tokens
    from framepack.serving.config import ServiceConfig

PORT = 7860
DATA = Path("outputs/service")
INSTALL = "pip install 'framepack-ai[serve]'"
HERE = ("127.0.0.1", "localhost", "::1")
TOKENS = "FRAMEPACK_TOKENS"
"""Of the environment: tokens with line feeds or commas between."""
PLACES, MODELS, LIMITS, ENTRY = "Places", "Models", "Limits", "Who may come in"

Data = Annotated[
    Path, typer.Option("--data", help="Folder of videos, and of the store.", rich_help_panel=PLACES)
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Database of jobs: sqlite:///FILE or postgresql+psycopg://HOST/NAME.",
        metavar="URL",
        show_default="jobs.sqlite in --data",
        rich_help_panel=PLACES,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="A model to offer, with the name that clients use; repeatable, the first is the default.",
        metavar="[NAME=]MODEL",
        show_default="bundled",
        rich_help_panel=MODELS,
    ),
]
Loras = Annotated[
    Path,
    typer.Option("--loras", help="Folder of LoRA files that clients may use.", rich_help_panel=MODELS),
]
Memory = Annotated[str, typer.Option("--memory", help="As in `framepack generate`.", rich_help_panel=MODELS)]
Device = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="Device of a worker; repeated, one for each worker in turn.",
        show_default="auto",
        rich_help_panel=MODELS,
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", help="As in `framepack generate`.", rich_help_panel=MODELS)]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="Threads of a worker on a CPU.",
        min=1,
        show_default="cores by workers",
        rich_help_panel=MODELS,
    ),
]

MaxSeconds = Annotated[
    float,
    typer.Option("--max-seconds", help="Longest video, and longest clip.", min=0.1, rich_help_panel=LIMITS),
]


def serve(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; another than this machine's needs tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen at; 0 for a free one.")] = PORT,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            help="How many make videos; 0 leaves that to `framepack worker`.",
            min=0,
            rich_help_panel=WORKERS,
        ),
    ] = 1,
    engine: Engine = "processes",
    max_workers: MaxWorkers = None,
    ray_address: RayAddress = None,
    data: Data = DATA,
    store: Store = None,
    model: Models = None,
    loras: Loras = Path("loras"),
    memory: Memory = "full",
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            "--token",
            help=f"Secret that lets a client in; repeatable. Better in {TOKENS} or a file, where no list of "
            "processes shows it.",
            metavar="[NAME:]SECRET",
            show_default=False,
            rich_help_panel=ENTRY,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="File with a token a line.", show_default=False, rich_help_panel=ENTRY
        ),
    ] = None,
    max_seconds: MaxSeconds = 600.0,
    max_queued: Annotated[
        int,
        typer.Option(
            "--max-queued",
            help="Videos of one client that may wait or be made.",
            min=1,
            rich_help_panel=LIMITS,
        ),
    ] = 20,
    quota: Annotated[
        float | None,
        typer.Option(
            "--quota",
            help="GB of all finished videos; the oldest are deleted.",
            min=0,
            show_default="none",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep",
            help="Days until a finished video is deleted.",
            min=0,
            show_default="for good",
            rich_help_panel=LIMITS,
        ),
    ] = None,
) -> None:
    """Serve a page for the browser and an API at /v1; Ctrl-C ends it, and the same command goes on.

    Videos are made by worker processes, section by section. Whatever is killed, no more than the section in
    progress is lost.
    """
    import logging
    import multiprocessing

    tokens = _tokens(token, token_file)
    if host not in HERE and not tokens.secrets:
        raise InputError(
            f"{host} lets other machines in: give --token, {TOKENS} or --token-file, or leave --host out"
        )
    config = service_config(
        data, store, model, loras, memory, device, dtype, threads, max(1, workers), max_seconds
    )
    try:
        from framepack.evaluation.arena.server import listen
        from framepack.serving.app import create_app
        from framepack.serving.engines import engine_of
        from framepack.serving.server import cleaning
        from framepack.serving.server import serve as serve_app
        from framepack.serving.service import Limits, Service
        from framepack.serving.store import JobStore
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    staff = staff_of(engine, workers, max_workers, ray_address)
    config = on_engine(config, engine, threads)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    multiprocessing.set_start_method("spawn", force=True)
    limits = Limits(seconds=max_seconds, queued=max_queued, quota=quota, days=keep)
    service = Service(JobStore(config.store, lease=config.lease), config, limits)
    for name in config.offers:
        service.about(name)  # a model that is not there is told of now
    listening, address = listen(host, port)
    hosts = {*HERE, "0.0.0.0", host} if host in HERE else None
    app = create_app(service, tokens, hosts)
    crew = engine_of(engine, service.store, config, staff)
    crew.start()
    try:
        with cleaning(service):
            # Plain print, flushed: who starts this from a program waits for the line.
            print(
                f"page {address}   API {address}v1   documentation {address}docs   (Ctrl-C ends)", flush=True
            )
            serve_app(app, listening)
    finally:
        print("ending: workers finish their step", flush=True)
        crew.close()
        service.store.close()


def worker(
    data: Data = DATA,
    store: Store = None,
    model: Models = None,
    loras: Loras = Path("loras"),
    memory: Memory = "full",
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    max_seconds: MaxSeconds = 600.0,
) -> None:
    """One more worker for a service, here or on another machine that has its folder and its store.

    The folder is shared by the same path or another one; models are given as to `framepack serve`.
    """
    config = service_config(data, store, model, loras, memory, device, dtype, threads, 1, max_seconds)
    try:
        from framepack.serving.worker import standing
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    print(f"working for {data} (Ctrl-C ends)", flush=True)
    standing(config)


def service_config(
    data: Path,
    store: str | None,
    models: list[str] | None,
    loras: Path,
    memory: str,
    devices: list[str] | None,
    dtype: str,
    threads: int | None,
    workers: int,
    max_seconds: float,
) -> ServiceConfig:
    """A service as its options say. Raises InputError: two models of one name."""
    from framepack.serving.asked import Offer
    from framepack.serving.config import ServiceConfig
    from framepack.serving.places import ServiceFolder

    offers: dict[str, Offer] = {}
    for text in models or ["bundled"]:
        name, given, where = text.partition("=")
        if not given:
            name, where = Path(text).name or text, text
        if name in offers:
            raise InputError(f"two models are called '{name}': give one another name, as NAME={where}")
        offers[name] = Offer(model=where, memory=memory, dtype=dtype)
    return ServiceConfig(
        data=data.absolute(),
        store=store or ServiceFolder(data).default_store,
        offers=offers,
        loras=loras.absolute(),
        seconds=max_seconds,
        devices=tuple(devices or ("auto",)),
        threads=threads or max(1, (os.cpu_count() or 1) // workers),
    )


def _tokens(given: list[str] | None, file: Path | None) -> Tokens:
    from framepack.serving.clients import Tokens

    found = list(given or [])
    if TOKENS in os.environ:
        found += os.environ[TOKENS].replace(",", "\n").split("\n")
    if file is not None:
        try:
            found += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"token file '{file}' cannot be read: give a text file with a token a line"
            ) from error
    tokens = Tokens.parse([text for text in found if text.strip()])
    if file is not None and not tokens.secrets:
        raise InputError(f"token file '{file}' holds no token: write one a line")
    return tokens


def not_installed(error: ModuleNotFoundError) -> Exception:
    """What to say of a package that is not there."""
    missing = (error.name or "").split(".")[0]
    if missing in ("framepack", ""):
        return error
    return InputError(f"the service needs packages that are not installed ({error}): {INSTALL}")
