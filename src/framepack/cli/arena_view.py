"""What ``framepack arena --results`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from framepack.evaluation.arena.standings import Standings

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
        console.print("[yellow]No judgement links rows on different sides of a line: not comparable.[/]")
    console.print()
    console.print(_matrix(found))
    if found.fewest < ENOUGH:
        console.print(
            f"[dim]Two rows have only {found.fewest} judgements together; the paper has {ENOUGH} or more.[/]"
        )


def _ratings(found: Standings) -> Table:
    table = Table(title="Ratings in ELO units, mean 1000", title_justify="left", box=None, pad_edge=False)
    table.add_column("row", style="bold", no_wrap=True)
    for name in ("Bradley-Terry", "95 % interval", "ELO", "rank", "judgements", "wins", "losses", "ties"):
        table.add_column(name, justify="right", no_wrap=True)
    for standing, following in zip(found.rows, (*found.rows[1:], None), strict=True):
        strength, tally = standing.strength, standing.tally
        table.add_row(
            escape(standing.row),
            f"{strength.rating:.0f}",
            f"{strength.low:.0f} to {strength.high:.0f}",
            f"{standing.elo:.0f}",
            str(standing.elo_rank),
            *(str(count) for count in (tally.judgements, tally.wins, tally.losses, tally.ties)),
        )
        if following is not None and following.strength.group != strength.group:
            table.add_row(*["-" * 6] * len(table.columns), style="dim")
    return table


def _matrix(found: Standings) -> Table:
    title = "Wins, losses and ties of the row against the column"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", style="bold", no_wrap=True)
    for standing in found.rows:
        table.add_column(escape(standing.row), justify="right")
    for standing in found.rows:
        cells = []
        for other in found.rows:
            tally = found.against.get((standing.row, other.row))
            cells.append("" if tally is None else f"{tally.wins}-{tally.losses}-{tally.ties}")
        table.add_row(escape(standing.row), *cells)
    return table
