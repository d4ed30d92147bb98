"""The ``framepack`` command. Verbs live in one file each; what is heavy is imported when a verb runs."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from framepack import __version__
from framepack.cli import (
    adopt,
    arena,
    batch,
    data,
    estimate,
    evaluate,
    generate,
    live,
    models,
    plan,
    redo,
    serve,
    train,
)
from framepack.errors import FramePackError

USER_ERROR = 2
INTERRUPTED = 130

app = typer.Typer(
    name="framepack",
    help="Make long videos from a picture and a prompt, at a cost that does not grow with their length.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("live")(live.live)
app.command("redo")(redo.redo)
app.command("plan")(plan.plan)
app.command("estimate")(estimate.estimate)
app.command("models")(models.models)
app.command("train")(train.train)
app.command("adopt")(adopt.adopt)
app.command("evaluate")(evaluate.evaluate)
app.command("arena")(arena.arena)
app.command("batch")(batch.batch)
app.command("serve")(serve.serve)
app.command("worker")(serve.worker)
app.add_typer(data.app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and end the process.

    Exit codes: 0 done; 2 something given cannot be used, one line on standard error says what;
    130 interrupted from the keyboard.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on CPUs it names kernels one could fetch
    try:
        code = app(prog_name="framepack", standalone_mode=False)
    except FramePackError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        # Usage errors of Typer's parser; their class moved between releases, this method did not.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _fail(f"{message()} ('framepack --help' lists what there is)")
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(USER_ERROR)
