"""What ``framepack evaluate`` shows: how a suite goes on, its tables, and the scores of videos."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from framepack.errors import InputError

if TYPE_CHECKING:
    from framepack.evaluation.results import SuiteResult
    from framepack.evaluation.suite import Suite
    from framepack.evaluation.worker import Task

VERBS = {"encode": "encoding clips to learn from", "train": "training", "make": "making"}
WRITE_EVERY = 120.0
"""Seconds between two versions of the tables while rows are still coming."""


def run_suite(
    suite: Suite, devices: tuple[str, ...], unavailable: dict[str, str], out: Path, command: str
) -> SuiteResult:
    """Carry a suite out, with its tables on disk all along, and show them at the end."""
    from framepack.evaluation.folder import begin
    from framepack.evaluation.gather import count_told, gather
    from framepack.evaluation.report import write_all
    from framepack.evaluation.run import carry_out
    from framepack.evaluation.score import ALL
    from framepack.evaluation.tables import shown
    from framepack.resources.machine import machine, machine_line

    begin(out, suite)
    console = Console(stderr=True)
    where = f"{len(devices)} workers; {machine_line(machine(devices[0]))}"

    def result() -> SuiteResult:
        return gather(suite, out, command, where, unavailable)

    done = count_told(suite, out)
    with _Watch(console, suite, done, len(devices), lambda: write_all(result(), out, ALL)) as watch:
        carry_out(suite, out, devices, watch)
    found = result()
    write_all(found, out, ALL)
    for table in shown(found, ALL, console.width):
        console.print(table)
    console.print(f"[bold green]done[/] {escape(str(out / 'report.html'))}", highlight=False, soft_wrap=True)
    return found


class _Watch:
    """A bar for all videos, and a line for what each worker is doing; plain lines without a terminal."""

    def __init__(
        self, console: Console, suite: Suite, done: int, workers: int, write: Callable[[], None]
    ) -> None:
        self.console, self.suite, self.write = console, suite, write
        self.total = sum(len(names) for _, _, names in suite.videos())
        self.videos = done
        self.written = self.begun_at = time.monotonic()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.all = self.bars.add_task("videos", total=self.total, completed=self.videos)
        self.lines = [self.bars.add_task("", total=1, visible=False) for _ in range(workers)]
        self.since: dict[int, float] = {}

    def __enter__(self) -> _Watch:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def begun(self, worker: int, task: Task) -> None:
        self.since[worker] = time.monotonic()
        what = f"{VERBS[task.kind]} {task.row}".strip()
        self.bars.reset(self.lines[worker], description=escape(what), total=1, visible=True)

    def progress(self, worker: int, task: Task, done: int, total: int) -> None:
        self.bars.update(self.lines[worker], completed=done, total=total)

    def finished(self, worker: int, task: Task) -> None:
        self.bars.update(self.lines[worker], visible=False)
        minutes = (time.monotonic() - self.since[worker]) / 60
        if task.kind == "train":
            self._say(f"{task.row}: trained in {minutes:.1f} min")
        elif task.kind == "make":
            self.videos += len(task.numbers)
            self.bars.update(self.all, completed=self.videos)
            self._say(f"{self.videos} of {self.total} videos, the last of {task.row}", plain_only=True)
        if time.monotonic() - self.written > WRITE_EVERY:
            self.write()
            self.written = time.monotonic()

    def _say(self, line: str, *, plain_only: bool = False) -> None:
        if not (plain_only and self.console.is_terminal):
            self.console.print(escape(line), highlight=False, soft_wrap=True)


# People's own videos -------------------------------------------------------------------------------------


def score_videos(given: Sequence[Path], metrics: Sequence[str], device: str, *, as_json: bool) -> None:
    """Score videos and show their scores and drift.

    Raises:
        InputError: no videos, one that cannot be read, or a metric that cannot be computed.
    """
    from framepack.evaluation.score import ALL, Scorer, subject_of, value_of
    from framepack.metrics.drift import drift_of
    from framepack.models.device import pick_device

    videos = _videos_in(given)
    scorer = Scorer(metrics or ("all",), str(pick_device(device)))
    console = Console(stderr=True)
    told: list[dict[str, object]] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        for video in bars.track(videos, description="scoring"):
            subject = subject_of(video)
            scores = {}
            for name, values in scorer(subject).items():
                found = {"value": value_of(values), "drift": drift_of(values)}
                scores[name] = {key: score if math.isfinite(score) else None for key, score in found.items()}
            told.append(
                {"video": str(video), "frames": len(subject.frames), "fps": subject.fps, "scores": scores}
            )
    if as_json:
        typer.echo(json.dumps(told))
        return
    for entry in told:
        table = Table(
            title=escape(str(entry["video"])), title_justify="left", title_style="bold", box=SIMPLE_HEAD
        )
        for column in ("metric", "value", "drift", "unit", "better"):
            table.add_column(column, justify="right" if column in ("value", "drift") else "left")
        for name, found in entry["scores"].items():  # type: ignore[attr-defined]
            metric = ALL[name]
            cells = ("-" if found[key] is None else f"{found[key]:.4g}" for key in ("value", "drift"))
            table.add_row(escape(metric.title), *cells, metric.unit, metric.better)
        console.print(table)
    console.print(
        "  value: mean of the scores; drift: |first 15 % - last 15 %|", style="dim", highlight=False
    )


def _videos_in(given: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        inside = sorted(path.glob("*.mp4")) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"'{path}' has no .mp4 files: give videos, or a folder of them")
        found += inside
    return found


def show_metrics() -> None:
    """All metrics, with what they need, and why some have no scores here."""
    from framepack.evaluation.score import ALL

    console = Console()
    table = Table(box=SIMPLE_HEAD)
    for column in ("metric", "what", "unit", "better", "here", "source"):
        table.add_column(column, overflow="fold")
    for name, metric in ALL.items():
        table.add_row(
            name, metric.title, metric.unit, metric.better, metric.missing() or "yes", metric.source
        )
    console.print(table)


# What videos cost by their length ------------------------------------------------------------------------


def run_scale(
    model: str, out: Path, device: str, flops_per_second: float | None, price: float | None, memory: float
) -> None:
    """Work out what videos of up to a day cost with each kind of context, and write it to a folder."""
    from framepack.evaluation.scale import simulate, tables, write

    console = Console(stderr=True)
    with console.status("counting") as status:
        scale = simulate(
            model,
            flops_per_second=flops_per_second,
            price=price,
            memory=memory,
            device=device,
            tell=lambda line: status.update(escape(line)),
        )
    written = write(scale, out)
    for table in tables(scale):
        for part in table.rich(console.width):
            console.print(part)
        console.print(
            "\n".join(f"  {note}" for note in table.notes), style="dim", highlight=False, markup=False
        )
    for path in written:
        console.print(f"[bold green]done[/] {escape(str(path))}", highlight=False, soft_wrap=True)
