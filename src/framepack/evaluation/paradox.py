"""Forgetting against drift: which rows pay for the one with the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from framepack.evaluation.analysis import Floats, Measured
from framepack.evaluation.canvas import (
    BETTER,
    INK,
    LETTERS,
    PAPER,
    ROW,
    Plot,
    dress,
    new_figure,
    with_unit,
    write,
)
from framepack.evaluation.findings import frontier, paradox_measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def paradox_plot(found: Measured) -> Plot | None:
    """One labelled point for each row, with both intervals; a line joins those that no row beats in both."""
    if (pair := paradox_measures(found)) is None:
        return None
    drift, revisit = pair
    rows = [
        n
        for n, row in enumerate(found.rows)
        if not row.reference and drift.estimates[n].clips and revisit.estimates[n].clips
    ]
    if len(rows) < 2:
        return None
    figure = new_figure(5.2)
    axes = figure.subplots()
    dress(axes)
    x = [drift.estimates[row] for row in rows]
    y = [revisit.estimates[row] for row in rows]
    front = frontier([e.value for e in x], [e.value for e in y])
    axes.plot([x[n].value for n in front], [y[n].value for n in front], color=BETTER, lw=1, ls=(0, (4, 2)))
    for n, row in enumerate(rows):
        colour = BETTER if n in front else ROW
        axes.plot([x[n].low, x[n].high], [y[n].value] * 2, color=colour, lw=1, alpha=0.7)
        axes.plot([x[n].value] * 2, [y[n].low, y[n].high], color=colour, lw=1, alpha=0.7)
        face = colour if found.rows[row].finished else PAPER
        axes.plot(x[n].value, y[n].value, "o", ms=6, color=colour, mfc=face, zorder=3)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    beyond = " beyond the world's" if drift.kind == "beyond" else ""
    xlabel = f"{with_unit(f'drift of {drift.title.lower()}{beyond}', drift.unit)}  →  drifts more"
    write(axes.set_xlabel, xlabel, fontsize=LETTERS, color=INK)
    axes.set_ylabel("revisit error  →  forgets more", fontsize=LETTERS, color=INK)
    names = [f"{found.name(row)}{'' if found.rows[row].finished else ' (not finished)'}" for row in rows]
    bars = [
        [(a.low, b.value, a.high, b.value), (a.value, b.low, a.value, b.high)]
        for a, b in zip(x, y, strict=True)
    ]
    points = np.array([(a.value, b.value) for a, b in zip(x, y, strict=True)])
    _label(figure, axes, points, np.nan_to_num(np.concatenate(bars)), names)
    told = (
        f"Forgetting (revisit error) against drift of {drift.title.lower()}{beyond}, mean and 95 % bootstrap "
        "interval of each row. Blue, joined: rows that no other one beats in both"
    )
    return Plot(key="paradox", title="Forgetting against drift", told=told, figure=figure)


def _label(figure: Figure, axes: Axes, points: Floats, bars: Floats, names: Sequence[str]) -> None:
    """Write each name beside its point, where it covers the least of points, bars and other names.

    points: (N, 2). bars: (M, 4), left, low, right and top of each.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    at, point = axes.transData.transform(points), 72 / figure.dpi
    frame = axes.get_window_extent(renderer)
    ends = axes.transData.transform(bars.reshape(-1, 2)).reshape(-1, 4)
    taken = [Bbox.from_bounds(px - 6, py - 6, 12, 12) for px, py in at]
    taken += [Bbox.from_extents(x0 - 1, y0 - 1, x1 + 1, y1 + 1) for x0, y0, x1, y1 in ends]
    for n in np.argsort(-at[:, 1], kind="stable"):
        text = axes.annotate(
            names[n],
            points[n],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=LETTERS,
            color=INK,
            parse_math=False,
            # Readable across the bars of others.
            path_effects=[withStroke(linewidth=3, foreground="white", alpha=0.85)],
        )
        size = text.get_window_extent(renderer)
        wide, high = size.width, size.height
        costs: list[tuple[float, int, Any, tuple[float, float]]] = []
        for far in (6.0, 14.0, 24.0):
            for left in (far, -far - wide, -wide / 2):
                for low in (4.0 + far / 4, -4 - far / 4 - high, -high / 2):
                    box = Bbox.from_bounds(at[n, 0] + left, at[n, 1] + low, wide, high)
                    outside = wide * high - _overlap(box, frame)
                    cost = sum(_overlap(box, other) for other in taken) + 4 * outside + 3 * far
                    costs.append((cost, len(costs), box, (left, low)))
        _, _, box, (left, low) = min(costs)
        text.set_position((left * point, low * point))
        taken.append(box)


def _overlap(one: Any, other: Any) -> float:
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return wide * high if wide > 0 and high > 0 else 0.0
