"""``framepack arena``: people judge pairs of videos in the browser; ratings from what they chose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from framepack.evaluation.arena.log import JudgementLog

QUESTION = "Which one is better overall?"
PORT = 8765
INSTALL = "pip install 'framepack-ai[serve]'"
JUDGING = "Judging"
RESULTS = "Results"


def arena(
    place: Annotated[
        Path,
        typer.Argument(
            help="Folder of rows: a suite's output, or folders with videos of the same names.",
            metavar="DIR",
            show_default=False,
        ),
    ],
    question: Annotated[
        str | None,
        typer.Option(
            "--question", help="What judges are asked.", show_default=QUESTION, rich_help_panel=JUDGING
        ),
    ] = None,
    judges: Annotated[
        str,
        typer.Option(
            "--judges",
            help="Names that may judge, with commas between; free for any.",
            metavar="free|NAME,NAME",
            rich_help_panel=JUDGING,
        ),
    ] = "free",
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the choice of pairs.", rich_help_panel=JUDGING)
    ] = 0,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen at; 0.0.0.0 lets other machines in, without a password.",
            rich_help_panel=JUDGING,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="Port to listen at; 0 for a free one.", rich_help_panel=JUDGING)
    ] = PORT,
    show_results: Annotated[
        bool,
        typer.Option(
            "--show-results", help="Let judges see the ratings at /results.", rich_help_panel=JUDGING
        ),
    ] = False,
    results: Annotated[
        bool,
        typer.Option(
            "--results", help="Print the ratings and write them to DIR/arena.", rich_help_panel=RESULTS
        ),
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            help="Write every judgement, a .csv.",
            metavar="FILE.csv",
            show_default=False,
            rich_help_panel=RESULTS,
        ),
    ] = None,
) -> None:
    """Judge pairs of videos in the browser, without knowing what made them; Ctrl-C ends it.

    Answers are kept in DIR/arena as they are given. The same command again goes on, and --results shows
    what they come to.
    """
    from framepack.evaluation.arena.folder import OWN
    from framepack.evaluation.arena.log import JudgementLog

    if question is not None and not question.strip():
        raise InputError("an empty question: give --question some words, or leave it out")
    if results or export is not None:
        log = JudgementLog(place / OWN)
        log.refresh()
        if results:
            _show_results(log, question)
        if export is not None:
            _export(log, export)
    else:
        _serve(place, question, _names(judges), seed, host, port, show_results=show_results)


def _serve(
    place: Path,
    question: str | None,
    judges: list[str] | None,
    seed: int,
    host: str,
    port: int,
    *,
    show_results: bool,
) -> None:
    from framepack.evaluation.arena.folder import read_folder

    found = read_folder(place)
    try:
        from framepack.evaluation.arena.server import create_app, listen, serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "uvicorn"):
            raise
        raise InputError(f"the arena needs FastAPI and uvicorn ({error}): {INSTALL}") from error
    app = create_app(
        found,
        question=question or QUESTION,
        default_question=question is None,
        judges=judges,
        seed=seed,
        show_results=show_results,
    )
    console = _console()
    for row in found.alone:
        console.print(
            f"[yellow]warning:[/] row '{row}' has no video of a name that others have; it is left out",
            highlight=False,
        )
    listening, address = listen(host, port)
    shared = {row for matchup in found.matchups for row in matchup.rows}
    # Plain print, flushed: who starts this from a program waits for the line.
    print(f"{len(shared)} rows, {len(found.matchups)} pairs of videos", flush=True)
    print(f"judge at {address} (Ctrl-C ends)", flush=True)
    serve(app, listening)
    print(f"answers are in {found.own}; framepack arena '{place}' --results shows what they come to")


def _show_results(log: JudgementLog, question: str | None) -> None:
    from framepack.cli.arena_view import print_standings
    from framepack.evaluation.arena.standings import CSV, JSON, save_standings, standings

    found = standings(log, question)
    folder = log.path.parent
    print_standings(found, _console())
    save_standings(found, folder)
    typer.echo(f"written to {folder / CSV} and {folder / JSON}")


def _export(log: JudgementLog, path: Path) -> None:
    from framepack.evaluation.arena.standings import export
    from framepack.video.io import check_output

    check_output(path, overwrite=True, suffix=".csv")
    typer.echo(f"{export(log, path)} judgements written to {path}")


def _names(judges: str) -> list[str] | None:
    """Names that may judge; None for any."""
    if judges.strip() == "free":
        return None
    names = [" ".join(name.split()) for name in judges.split(",") if name.strip()]
    if not names:
        raise InputError(f"--judges '{judges}' names nobody: give names with commas between, or free")
    return names


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
