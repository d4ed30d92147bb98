"""What ``framepack arena --results`` shows."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from framepack.evaluation.arena.standings import Standings, Tally

ENOUGH = 100
"""Judgements of every two rows in the paper's arena."""


def print_standings(found: Standings, console: Console) -> None:
    """Ratings, then who was preferred to whom."""
    judges = ", ".join(f"{escape(name)} {count}" for name, count in found.judges.items())
    console.print(f"[bold]{escape(found.question)}[/]", soft_wrap=True)
    console.print(f"{found.judgements} judgements ({judges}), {found.skipped} skipped", soft_wrap=True)
    console.print()
    console.print(_ratings(found))
    if found.groups > 1:
        console.print(
            f"[yellow]Not comparable, for no judgement links them:[/] {'; '.join(_group_names(found))}",
            soft_wrap=True,
        )
    console.print()
    console.print(_matrix(found))
    if found.fewest < ENOUGH:
        console.print(
            f"[dim]Two rows have only {found.fewest} judgements together; the paper has {ENOUGH} or more.[/]"
        )


def _group_names(found: Standings) -> list[str]:
    return [
        ", ".join(escape(standing.row) for standing in standings)
        for _, standings in groupby(found.rows, key=lambda standing: standing.strength.group)
    ]


def _ratings(found: Standings) -> Table:
    title = "Bradley-Terry rating and ELO, mean 1000"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("row", style="bold", overflow="fold")
    for name in ("rating", "95 %", "ELO", "rank", "won-lost-tied"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, standing in enumerate(found.rows, start=1):
        strength, tally = standing.strength, standing.tally
        table.add_row(
            str(number),
            escape(standing.row),
            f"{strength.rating:.0f}",
            f"{strength.low:.0f} to {strength.high:.0f}",
            f"{standing.elo:.0f}",
            str(standing.elo_rank),
            _counts(tally),
        )
    return table


def _matrix(found: Standings) -> Table:
    """Columns by number alone: names would not fit."""
    title = "Won-lost-tied of the row against the column"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("row", style="bold", overflow="fold")
    for number in range(1, len(found.rows) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, standing in enumerate(found.rows, start=1):
        tallies = [found.against.get((standing.row, other.row)) for other in found.rows]
        table.add_row(
            str(number), escape(standing.row), *(_counts(tally) if tally else "" for tally in tallies)
        )
    return table


def _counts(tally: Tally) -> str:
    return f"{tally.wins}-{tally.losses}-{tally.ties}"
