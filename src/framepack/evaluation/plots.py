"""Plots of a suite: scores over time, drift, forgetting, and forgetting against drift.

Each row has its own panel or label, so that few are needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from framepack.evaluation.analysis import REVISIT, Floats, Measure, Measured, MetricInfo
from framepack.evaluation.canvas import (
    BETTER,
    GRID,
    INK,
    LETTERS,
    LETTERS_WIDE,
    ROW,
    WAITING,
    WORSE,
    Plot,
    colour_of,
    dress,
    new_figure,
    with_unit,
    wrapped,
    write,
    write_title,
)
from framepack.evaluation.paradox import paradox_plot
from framepack.evaluation.results import RowResult
from framepack.metrics.bootstrap import bootstrap_means
from framepack.metrics.drift import end_count
from framepack.metrics.significance import FEWEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
LEGEND_WIDE = 112
"""Letters in a line of a legend."""
RESAMPLES = 2000
"""Of bands; more than the eye sees."""


@dataclass(frozen=True)
class Line:
    """One row's curve: x (N,), and mean, low and high (3, N)."""

    name: str
    x: Floats
    band: Floats
    colour: str = ROW
    finished: bool = True


def plots(found: Measured) -> Iterator[Plot]:
    """All that there are numbers for, one after another."""
    paradox = paradox_plot(found)
    if paradox:
        yield paradox
    drift = drift_plot(found)
    if drift:
        yield drift
    forgetting = forgetting_plot(found)
    if forgetting:
        yield forgetting
    for metric, info in found.metrics.items():
        curves = curves_plot(found, metric, info)
        if curves:
            yield curves


# Over time ---------------------------------------------------------------------------------------------


def curves_plot(found: Measured, metric: str, info: MetricInfo) -> Plot | None:
    """A metric over time: a panel for each row, with the reference and the row to compare with."""
    measure = found.measures.get(("beyond", metric), found.measures.get(("drift", metric)))
    lines = [
        line
        for n, row in enumerate(found.rows)
        if (line := _curve(row, metric, colour_of(found, measure, n))) is not None
    ]
    if not lines:
        return None
    longest = max(len(line.x) for line in lines)
    what = {"pair": "pair of frames", "window": "window"}.get(info.per, "frame")
    ylabel = with_unit(info.title, info.unit)
    figure = _panels(found, lines, verb="drifts", xlabel=what, ylabel=ylabel, ends=longest)
    told = (
        f"{info.title} by {what}, mean over clips with its 95 % bootstrap band, a panel for each row. Grey "
        "stripes: the two ends that drift compares"
    )
    return Plot(key=f"curve-{metric}", title=f"{info.title} over time", told=told, figure=figure)


def _curve(row: RowResult, metric: str, colour: str) -> Line | None:
    """Of the clips that are as long as most; frames without a score are left out."""
    scores = [clip.values[metric] for clip in row.clips if len(clip.values.get(metric, ())) > 1]
    if not scores:
        return None
    lengths = [len(values) for values in scores]
    most = max(set(lengths), key=lengths.count)
    kept = np.array([values for values in scores if len(values) == most], float)
    kept[~np.isfinite(kept)] = np.nan
    if np.isnan(kept).all():
        return None
    band = bootstrap_means(kept, resamples=RESAMPLES)
    band[1:, (~np.isnan(kept)).sum(axis=0) < FEWEST] = np.nan
    return Line(row.name, np.arange(1, most + 1, dtype=float), band, colour, row.finished)


def forgetting_plot(found: Measured) -> Plot | None:
    """Revisit error by frames away, a panel for each row."""
    if not found.bins:
        return None
    whole = found.measures.get(("revisit", REVISIT))
    lines = []
    for n, row in enumerate(found.rows):
        estimates = [parts[n] for _, parts in found.bins]
        if any(estimate.clips for estimate in estimates):
            band = np.array([[e.value, e.low, e.high] for e in estimates]).T
            places = np.arange(len(found.bins), dtype=float)
            lines.append(Line(row.name, places, band, colour_of(found, whole, n), row.finished))
    if not lines:
        return None
    figure = _panels(
        found,
        lines,
        verb="forgets",
        xlabel="frames away",
        ylabel="revisit error",
        ticks=[title.replace(" to ", "–") for title, _ in found.bins],
    )
    told = (
        "Revisit error by frames away, mean over walks with its 95 % bootstrap interval, a panel for each row"
    )
    return Plot(key="forgetting", title="Forgetting", told=told, figure=figure)


def _panels(
    found: Measured,
    lines: Sequence[Line],
    *,
    verb: str,
    xlabel: str,
    ylabel: str,
    ends: int | None = None,
    ticks: Sequence[str] | None = None,
) -> Figure:
    """A panel for each line; behind it, thin, those that it is to be seen against."""
    references = [row.name for row in found.rows if row.reference]
    shown = [line for line in lines if line.name not in references] or list(lines)
    columns = min(COLUMNS, len(shown))
    down = math.ceil(len(shown) / columns)
    figure = new_figure(down * 1.45 + 0.75)
    all_axes = figure.subplots(down, columns, sharex=True, sharey=True, squeeze=False).ravel()
    named = references if found.against is None else [*references, found.name(found.against)]
    behind = [
        (line, style)
        for name, style in zip(reversed(named), ((0, (1, 1.2)), (0, (4, 2)), (0, (5, 1, 1, 1))), strict=False)
        for line in lines
        if line.name == name
    ]
    for axes, line in zip(all_axes, shown, strict=False):
        dress(axes)
        if ends is not None:
            count = end_count(ends) if ends > 1 else 1
            for left in (0.5, ends - count + 0.5):
                axes.axvspan(left, left + count, color=GRID, alpha=0.5, lw=0)
        for other, style in behind:
            if other is not line:
                axes.plot(other.x, other.band[0], color=INK, lw=0.9, ls=style)
        if ticks is None:
            axes.fill_between(line.x, line.band[1], line.band[2], color=line.colour, alpha=0.25, lw=0)
            axes.plot(line.x, line.band[0], color=line.colour, lw=1.8)
        else:
            mean, low, high = line.band
            errors = np.nan_to_num(np.abs([mean - low, high - mean]))
            axes.errorbar(line.x, mean, errors, color=line.colour, lw=1.8, elinewidth=1.2, marker="o", ms=4)
            axes.set_xticks(range(len(ticks)), ticks)
        note = "" if line.finished else " (not finished)"
        write_title(axes, f"{line.name}{note}")
    for axes in all_axes[len(shown) :]:
        axes.set_visible(False)
    _legend(found, figure, verb, behind)
    write(figure.supylabel, ylabel, fontsize=LETTERS, color=INK)
    figure.supxlabel(xlabel, fontsize=LETTERS, color=INK)
    return figure


def _legend(found: Measured, figure: Figure, verb: str, behind: Sequence[tuple[Line, Any]] = ()) -> None:
    """What the thin lines are, and the colours that are there."""
    from matplotlib.lines import Line2D

    entries = [(line.name, INK, 0.9, style) for line, style in behind]
    if found.against is not None and len(found.rows) > 1:
        told = {
            BETTER: f"{verb} less than {found.name(found.against)}",
            WORSE: f"{verb} more",
            ROW: "no difference found",
        }
        if not all(row.finished for row in found.rows):
            told[WAITING] = "not finished, not compared"
        entries += [(text, colour, 2.2, "-") for colour, text in told.items()]
    if not entries:
        return
    handles = [Line2D([], [], color=colour, lw=wide, ls=style) for _, colour, wide, style in entries]
    names = [wrapped(text) for text, *_ in entries]
    columns = len(names) if sum(len(name) + 6 for name in names) < LEGEND_WIDE else COLUMNS
    how: dict[str, Any] = {"loc": "outside upper left", "ncols": columns}
    how |= {"fontsize": LETTERS - 1, "frameon": False}
    for text in figure.legend(handles, names, **how).get_texts():
        text.set(parse_math=False, color=INK)


# Drift -------------------------------------------------------------------------------------------------


def drift_plot(found: Measured) -> Plot | None:
    """Bars with intervals: a panel for each metric, in each the rows in their order."""
    kind = "beyond" if found.of("beyond") else "drift"
    measures = found.of(kind)
    rows = [
        n
        for n, row in enumerate(found.rows)
        if not row.reference and any(measure.estimates[n].clips for measure in measures)
    ]
    if not measures or not rows:
        return None
    columns = min(COLUMNS, len(measures))
    down = math.ceil(len(measures) / columns)
    figure = new_figure(down * (0.24 * len(rows) + 0.62) + 0.4)
    all_axes = figure.subplots(down, columns, sharey=True, squeeze=False).ravel()
    for axes, measure in zip(all_axes, measures, strict=False):
        _bars(axes, found, measure, rows)
    for axes in all_axes[len(measures) :]:
        axes.set_visible(False)
    _legend(found, figure, "drifts")
    title = "Drift beyond the world's" if kind == "beyond" else "Drift"
    told = f"{title} of each metric and row, mean over clips with its 95 % bootstrap interval; less is better"
    return Plot(key="drift", title=title, told=told, figure=figure)


def _bars(axes: Axes, found: Measured, measure: Measure, rows: Sequence[int]) -> None:
    dress(axes)
    for place, row in enumerate(rows):
        estimate = measure.estimates[row]
        if not estimate.clips:
            continue
        colour = colour_of(found, measure, row)
        axes.barh(place, estimate.value, height=0.62, color=colour, alpha=0.45, lw=0)
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, lw=2)
        axes.plot(estimate.value, place, "o", color=colour, ms=4)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([found.name(row) for row in rows], fontsize=LETTERS, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    longest = max((len(found.name(row)) for row in rows), default=0)  # which takes its room from the panels
    write_title(axes, with_unit(measure.title, measure.unit), max(18, LETTERS_WIDE - 4 - longest // 3))
