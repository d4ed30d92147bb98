"""Tables as values, and their forms: Markdown for files, Rich for the terminal; the report has its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from framepack.evaluation.analysis import Estimate

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NOTHING = "–"
CLAIMED = ("better", "worse", "differs")
"""Marks of a difference that is more than chance; a star tells of it too, for who sees no colours."""


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    detail: said more quietly after ``text``, such as an interval. number: what the column is sorted by.
    mark: best, of its column, or one of `CLAIMED`. code: set as code.
    """

    text: str = NOTHING
    detail: str = ""
    number: float | None = None
    mark: str = ""
    code: bool = False

    @property
    def plain(self) -> str:
        return f"{self.text}{self.star} {self.detail}".strip()

    @property
    def star(self) -> str:
        return "*" if self.mark in CLAIMED else ""


@dataclass(frozen=True)
class Column:
    """``detail``: its unit, or which way is better. ``words``: text, set left."""

    title: str
    detail: str = ""
    words: bool = False

    @property
    def plain(self) -> str:
        return f"{self.title}, {self.detail}" if self.detail else self.title


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a title; the first column names them.

    key: its name in files and in the report's page.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        head = [_line(markdown_text(column.plain) for column in self.columns)]
        head.append(_line("---" if column.words else "---:" for column in self.columns))
        rows = [_line(map(_markdown_cell, row)) for row in self.rows]
        notes = [f"- {markdown_text(note)}" for note in self.notes]
        return "\n".join([f"## {markdown_text(self.title)}", "", *head, *rows, "", *notes, ""])

    def rich(self, width: int) -> Iterator[RichTable]:
        """Tables that fit into ``width`` columns of text, the first column in each of them."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table as RichTable

        first = max([len(self.columns[0].title), *(len(row[0].text) for row in self.rows)], default=0)
        wide = [max(_wide(row[n]) for row in self.rows) if self.rows else 0 for n in range(len(self.columns))]
        for number, part in enumerate(_parts(wide, width - first - 4)):
            table = RichTable(
                title=escape(self.title) if number == 0 else None,
                title_justify="left",
                title_style="bold",
                box=SIMPLE_HEAD,
            )
            for n in (0, *part):
                column = self.columns[n]
                side = "left" if column.words or n == 0 else "right"
                table.add_column(escape(column.plain), justify=side, overflow="fold")  # type: ignore[arg-type]
            for row in self.rows:
                table.add_row(*(_rich_cell(row[n]) for n in (0, *part)))
            yield table


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number for people; what is not there as a dash."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value + 0.0:{'+' if signed else ''},.{digits}f}"
    return text.replace("-", "+" if signed else "", 1) if re.fullmatch(r"-[0.,]*", text) else text


def digits_of(found: Iterable[Estimate]) -> int:
    """Decimals that show two digits of how unsure a column's numbers are, or three of the numbers."""
    found = list(found)
    spreads = sorted((e.high - e.low) / 2 for e in found if e.high > e.low)
    if spreads:
        size, shown = spreads[len(spreads) // 2], 2
    else:
        size, shown = max((abs(e.value) for e in found if math.isfinite(e.value)), default=0.0), 3
    return min(max(shown - 1 - math.floor(math.log10(size)), 0), 6) if size > 0 and math.isfinite(size) else 2


def estimate_cell(
    found: Estimate, digits: int, *, signed: bool = False, mark: str = "", of: int | None = None
) -> Cell:
    """A value and its interval; where there are fewer clips than ``of``, how many there are.

    A value that is much surer than its column has more decimals than that, so that its interval is seen.
    """
    if not found.clips:
        return Cell()
    if found.high > found.low:
        digits = max(digits, digits_of([found]) - 1)
    parts = []
    if not math.isnan(found.low):
        low, high = (number(bound, digits, signed=signed) for bound in (found.low, found.high))
        parts.append(f"[{low}, {high}]")
    if of is not None and found.clips < of:
        parts.append(f"n={found.clips}")
    return Cell(number(found.value, digits, signed=signed), " ".join(parts), found.value, mark)


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|]|\](?=[(\[:]))", r"\\\1", text)


def _markdown_cell(cell: Cell) -> str:
    if cell.code:
        text = cell.text.replace("`", "'").replace("|", "\\|")
        return f"`{' '.join(text.split())}`" if text.strip() else ""
    text = markdown_text(cell.text)
    strong = f"**{text}**" if cell.mark == "best" else text
    return f"{strong}{markdown_text(cell.star)} {markdown_text(cell.detail)}".strip()


def _rich_cell(cell: Cell) -> str:
    from rich.markup import escape

    style = {"best": "bold", "better": "cyan", "worse": "yellow"}.get(cell.mark)
    text = escape(cell.text + cell.star)
    text = f"[{style}]{text}[/]" if style else text
    return f"{text} [dim]{escape(cell.detail)}[/]" if cell.detail else text


def _wide(cell: Cell) -> int:
    return min(len(cell.plain), 44)


def _parts(wide: list[int], room: int) -> list[list[int]]:
    """Columns after the first, in groups that fit."""
    parts: list[list[int]] = [[]]
    left = room
    for n in range(1, len(wide)):
        need = max(wide[n], 12) + 3
        if parts[-1] and need > left:
            parts.append([])
            left = room
        parts[-1].append(n)
        left -= need
    return parts


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
