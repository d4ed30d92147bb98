"""What ``framepack train`` shows of its report on held-out ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def print_report(report: dict[str, Any], out: Path) -> None:
    """The table on standard error, so that standard output holds what was made and nothing else."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from framepack.training.report import HORIZONS, MARKDOWN, PICTURE, blocks_of, notes_of, title_of

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(title_of(report))}[/]")
    for metric, rows in blocks_of(report):
        table = Table(box=None, pad_edge=False, collapse_padding=True)
        table.add_column(metric, no_wrap=True)
        for horizon in HORIZONS:
            table.add_column(horizon, justify="right", no_wrap=True)
        for cells in rows:
            table.add_row(*map(escape, cells))
        if rows:
            console.print(table)
    for note in notes_of(report):
        console.print(f"[dim]{escape(note)}[/]")
    console.print(f"[dim]{escape(str(out / MARKDOWN))}, {escape(str(out / PICTURE))}[/]")
