"""Results of a benchmark: to the terminal, and to Markdown or JSON files."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from framepack.errors import FramePackError, OutputError
from framepack.resources.machine import machine_line

FORMATS = (".md", ".json")
WIDTH = 140
"""Columns of output that goes to a file, where no terminal says how many there are."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a heading; the first column names them, the others are right-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def rich(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for n, column in enumerate(self.columns):
            table.add_column(column, justify="left" if n == 0 else "right", no_wrap=n == 0)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", _row(self.columns)]
        lines.append(_row(["---", *["---:"] * (len(self.columns) - 1)]))
        lines += [_row(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one benchmark found.

    Attributes:
        command: the line that makes it again.
        machine: where and under what load it was made.
        findings: a line each, said first.
        data: every number behind the tables, for JSON.
    """

    name: str
    command: str
    machine: dict[str, Any]
    tables: tuple[Table, ...]
    findings: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def show(self, console: Console) -> None:
        console.print(f"[bold]{self.name}[/bold]")
        console.print(f"$ {self.command}", markup=False, soft_wrap=True)
        console.print(machine_line(self.machine), markup=False, soft_wrap=True, style="dim")
        for table in self.tables:
            console.print()
            console.print(table.rich())
            for note in table.notes:
                console.print(f"  {note}", markup=False, soft_wrap=True, style="dim")
        for finding in self.findings:
            console.print(f"* {finding}", markup=False, soft_wrap=True)

    def markdown(self) -> str:
        lines = [f"# {self.name}", "", *(f"- {finding}" for finding in self.findings), ""]
        lines += [f"    {self.command}", "", machine_line(self.machine), ""]
        return "\n".join([*lines, *(table.markdown() for table in self.tables)])

    def to_json(self) -> dict[str, Any]:
        values = {"name": self.name, "command": self.command, "machine": self.machine}
        return values | {"findings": list(self.findings), **self.data}

    def save(self, path: Path) -> None:
        """Write Markdown or JSON, by the suffix.

        Raises:
            OutputError: another suffix, or a place that cannot be written.
        """
        check_file(path, FORMATS)
        text = self.markdown() if path.suffix == ".md" else json.dumps(self.to_json(), indent=2) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"'{path}' cannot be written ({error.strerror}): choose another") from error


def check_file(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a name before hours are spent on what goes into it."""
    if path.suffix not in suffixes:
        raise OutputError(f"'{path}': its name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder: give a file name inside it")


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


Benchmark = Callable[[argparse.Namespace, str, Console], Report]
"""Options, the command line as typed, where progress goes -> report."""


def carry_out(
    script: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None, benchmark: Benchmark
) -> int:
    """Parse, run, show and save; what a user got wrong ends with one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    parser.add_argument("--out", type=Path, action="append", default=[], help=".md or .json; may be repeated")
    options = parser.parse_args(argv)
    command = shlex.join(["python", f"benchmarks/{script}.py", *argv])
    try:
        for path in options.out:
            check_file(path, FORMATS)
        report = benchmark(options, command, Console(stderr=True))
        console = Console()
        report.show(console if console.is_terminal else Console(width=WIDTH))
        for path in options.out:
            report.save(path)
    except FramePackError as error:
        parser.exit(2, f"{script}: {error}\n")
    return 0


def finite(value: float) -> float | None:
    """JSON has no infinities."""
    return value if math.isfinite(value) else None
