"""What all plots of a suite look like.

Colours are of Okabe and Ito (2008), told apart by colour-blind people too, and never tell anything alone.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framepack.evaluation.analysis import Measure, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = "#22262b", "#767c85", "#dcdfe3", "#ffffff"
ROW, WAITING, BETTER, WORSE = "#56606b", "#a9b0b8", "#0072b2", "#d55e00"
WIDTH = 7.6
"""Inches, so that letters of `LETTERS` points are read on a page and, at twice its width, on a phone."""
LETTERS = 9
LETTERS_WIDE = 40
"""Letters over a panel."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure, its name in files, and what is said beside it; ``told``: in words, for who can't see it."""

    key: str
    title: str
    told: str
    figure: Figure


def colour_of(found: Measured, measure: Measure | None, row: int) -> str:
    """Blue where it is better than the row that others are compared with, orange where it is worse."""
    if not found.rows[row].finished:
        return WAITING
    if row == found.against:
        return INK
    if measure is None or found.against is None or not measure.differ(row, found.against):
        return ROW
    return BETTER if measure.sign * measure.differences[row].value > 0 else WORSE


def new_figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)  # which measures text
    return figure


def dress(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=LETTERS - 1, length=3)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)


def write_title(axes: Axes, text: str, wide: int = LETTERS_WIDE) -> None:
    write(axes.set_title, wrapped(text, wide), loc="left", fontsize=LETTERS, color=INK)


def wrapped(text: str, wide: int = LETTERS_WIDE) -> str:
    """Lines that fit over a panel."""
    return "\n".join(textwrap.wrap(text, wide)) or text


def write(into: Any, text: str, **how: Any) -> None:
    """Names may hold dollar signs, which are no formulas here."""
    into(text, **how).set_parse_math(False)


def with_unit(title: str, unit: str) -> str:
    return f"{title}, {unit}" if unit else title
