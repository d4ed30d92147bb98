"""A simulation of scale as files: a plot, all its numbers, and a page of them for people."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from framepack.errors import OutputError
from framepack.evaluation.cells import NOTHING, Cell, Column, Table
from framepack.evaluation.scale.simulation import Curve, Scale
from framepack.resources.kinds import Point
from framepack.resources.machine import GB
from framepack.resources.sections import CACHE, FULL, PACKED, WINDOW

COLOURS = {PACKED: "#1f6fb4", FULL: "#c8552b", CACHE: "#5a8f3c", WINDOW: "#8a63b8"}
TICKS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 86400: "24 h"}
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")
MOMENTS = ((1e-3, "ms"), (1, "s"), (60, "min"), (3600, "h"), (86400, "days"), (31557600, "years"))


def write(scale: Scale, out: Path) -> list[Path]:
    """Write ``scale.png``, ``scale.svg``, ``scale.csv`` and ``scale.md`` into a folder.

    Raises:
        OutputError: it cannot be written.
    """
    files = [out / f"scale.{suffix}" for suffix in ("png", "svg", "csv", "md")]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in files[:2]:
            plot(scale, path)
        files[2].write_text(as_csv(scale), encoding="utf-8")
        files[3].write_text(as_markdown(scale), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written ({error.strerror}): choose another") from error
    return files


# Numbers -------------------------------------------------------------------------------------------------


def of_time(seconds: float) -> str:
    """In the largest unit that it has one of."""
    size, unit = next(((s, u) for s, u in reversed(MOMENTS) if seconds >= s), MOMENTS[0])
    return f"{_three(seconds / size)} {unit}"


def of_operations(count: float) -> str:
    """With a prefix of the SI, such as 16.8 PFLOP."""
    step = 0
    while count >= 999.5 and step < len(PREFIXES) - 1:
        count, step = count / 1000, step + 1
    return f"{_three(count)} {PREFIXES[step]}FLOP"


def of_memory(count: float) -> str:
    return f"{_three(count / GB)} GB"


def _three(value: float) -> str:
    """Three digits that count."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 99.95 else f"{value:.3g}"


def as_csv(scale: Scale) -> str:
    """Every point of every curve, after them the sections that were carried out beside what was foretold."""
    text = io.StringIO()
    names = [field.name for field in fields(Point)]
    columns = ["kind", "source", *names, "fits", "simulated_operations", "simulated_memory", "simulated_time"]
    rows = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    rows.writeheader()
    for curve in scale.curves:
        for source, points in (("simulated", curve.points), ("table", curve.table)):
            for point in points:
                fits = int(scale.fits(point))
                rows.writerow({"kind": curve.kind, "source": source, "fits": fits} | asdict(point))
    for check in scale.checks:
        m = check.measured
        rows.writerow(
            {
                "kind": m.kind,
                "source": "measured",
                "seconds": m.seconds_of_video,
                "sections": m.history + 1,
                "context": m.context,
                "operations": m.operations,
                "memory": m.peak,
                "time": m.seconds,
                "simulated_operations": check.operations,
                "simulated_memory": check.memory,
                "simulated_time": check.time,
            }
        )
    return text.getvalue()


def as_markdown(scale: Scale) -> str:
    height, width = scale.size
    lines = [
        "# Cost by length of video",
        "",
        f"{scale.model}, {width} x {height} at {scale.fps:g} fps, `{scale.method}`.",
        "",
        "![plot](scale.png)",
        "",
        "Assumptions:",
        "",
        *(f"- {line}" for line in scale.assumptions),
        "",
    ]
    return "\n".join([*lines, *(table.markdown() for table in tables(scale))])


# Tables --------------------------------------------------------------------------------------------------


def tables(scale: Scale) -> list[Table]:
    """What videos of some lengths take, and what was measured."""
    return [lengths_table(scale), *([checks_table(scale)] if scale.checks else [])]


def lengths_table(scale: Scale) -> Table:
    rows = []
    for points in zip(*(curve.table for curve in scale.curves), strict=True):
        for curve, point in zip(scale.curves, points, strict=True):
            rows.append(_length_row(scale, curve.kind, point))
    priced = () if scale.price is None else (Column("cost"),)
    notes = [
        "context, a section, memory, a second more: of the section that costs most",
    ]
    ends = [f"{c.kind} beyond {of_time(_within(scale, c)[1])}" for c in scale.curves if _outgrows(scale, c)]
    if ends:
        notes.append(f"does not fit into {of_memory(scale.memory)}: {', '.join(ends)}")
    return Table(
        key="lengths",
        title="What a video takes",
        columns=(
            Column("video", words=True),
            Column("context", words=True),
            Column("context", "tokens"),
            Column("a section"),
            Column("memory"),
            Column("a second more"),
            Column("the whole video"),
            Column("its time"),
            *priced,
        ),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _length_row(scale: Scale, kind: str, point: Point) -> tuple[Cell, ...]:
    price = scale.cost(point.total_time)
    return (
        Cell(TICKS.get(round(point.seconds), of_time(point.seconds))),
        Cell(kind),
        Cell(f"{point.context:,}"),
        Cell(of_operations(point.operations)),
        Cell(of_memory(point.memory), "" if scale.fits(point) else "does not fit"),
        Cell(of_time(point.time / scale.section_seconds)),
        Cell(of_operations(point.total_operations)),
        Cell(of_time(point.total_time)),
        *([] if price is None else [Cell(_three(price) if price >= 0.01 else f"{price:.2g}")]),
    )


def checks_table(scale: Scale) -> Table:
    """Sections that were carried out, with ratios of simulated to measured."""
    rows = []
    for check in scale.checks:
        m = check.measured
        rows.append(
            (
                Cell(m.kind),
                Cell(str(m.history)),
                Cell(f"{m.context:,}"),
                Cell(f"{check.operations / m.operations:.4f}"),
                Cell(f"{m.peak / 1e6:,.1f}"),
                Cell(f"{check.memory / m.peak:.3f}"),
                Cell(f"{m.seconds:.3g}"),
                Cell(f"{check.time / m.seconds:.2f}", "calibrates" if check.calibrates else ""),
            )
        )
    return Table(
        key="checks",
        title="Simulated beside measured",
        columns=(
            Column("context", words=True),
            Column("history", "sections"),
            Column("context", "tokens"),
            Column("operations", "simulated/measured"),
            Column("memory", "MB measured"),
            Column("memory", "simulated/measured"),
            Column("time", "s a section measured"),
            Column("time", "simulated/measured"),
        ),
        rows=tuple(rows),
        notes=(
            "operations and bytes are counted while sections run; a causal cache is simulated only",
            "calibrates: the throughput was taken from these sections, so that their time says little",
            near(scale),
        ),
    )


def near(scale: Scale) -> str:
    """How near the times of sections are that did not give the throughput."""
    ratios = [check.time / check.measured.seconds for check in scale.checks if not check.calibrates]
    if not ratios:
        return f"time: {NOTHING}"
    return f"time of the {len(ratios)} others: simulated/measured {min(ratios):.2f} to {max(ratios):.2f}"


# Plot ----------------------------------------------------------------------------------------------------


def plot(scale: Scale, path: Path) -> None:
    """Four panels over the length of the video; dashed where a kind does not fit, dots where measured."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "framepack", "font.size": 9}):
        figure = Figure(figsize=(9.5, 8.2))
        axes = figure.subplots(2, 2, sharex=True)
        figure.subplots_adjust(left=0.085, right=0.94, top=0.9, hspace=0.2, wspace=0.3)
        _panels(scale, axes.flat)
        height, width = scale.size
        title = f"{scale.model}, {width} x {height} at {scale.fps:g} fps: what a video takes by its length"
        figure.suptitle(title, x=0.085, ha="left", fontsize=12)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(0.075, 0.965), ncols=6, frameon=False
        )
        note = "\n".join(_wrapped(line) for line in scale.assumptions)
        lines = note.count("\n") + 1
        figure.subplots_adjust(bottom=0.075 + 0.0165 * lines)
        figure.text(0.085, 0.012, note, fontsize=7, color="#555555", va="bottom", linespacing=1.25)
        date = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=96, metadata=date)


def _wrapped(line: str) -> str:
    import textwrap

    return textwrap.fill(line, 158, initial_indent="· ", subsequent_indent="  ")


def _panels(scale: Scale, axes: Any) -> None:
    from matplotlib.ticker import NullLocator

    tokens, speed, memory, total = axes
    each = scale.section_seconds
    panels = {
        tokens: ("tokens of context, dearest section", lambda p: p.context, lambda m: m.context),
        speed: (
            "seconds of work for one second more of video",
            lambda p: p.time / each,
            lambda m: m.seconds / each,
        ),
        memory: ("memory at the peak, GB", lambda p: p.memory / GB, lambda m: m.peak / GB),
        total: ("hours for the whole video", lambda p: p.total_time / 3600, None),
    }
    for panel, (label, value, measured) in panels.items():
        for curve in scale.curves:
            line = {"color": COLOURS[curve.kind], "lw": 3.2 if curve.kind == PACKED else 1.6}
            x, y = (np.array(list(map(of, curve.points))) for of in (lambda p: p.seconds, value))
            within, end = _within(scale, curve)
            last = np.exp(np.interp(np.log(end), np.log(x), np.log(y)))
            panel.plot([*x[:within], end], [*y[:within], last], **line, label=curve.kind)
            if within < len(x):
                panel.plot([end, *x[within:]], [last, *y[within:]], ls=(0, (2, 2)), **line)
                panel.plot(end, last, "x", color=line["color"], ms=8, mew=2)
        if measured is not None:
            for check in scale.checks:
                m = check.measured
                style = {"color": COLOURS[m.kind], "mec": "white", "mew": 0.7, "ms": 6, "zorder": 5}
                panel.plot(m.seconds_of_video, measured(m), "o", **style)
        panel.set_title(label, loc="left", fontsize=9.5)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        last = max(curve.points[-1].seconds for curve in scale.curves)
        ticks = {at: told for at, told in TICKS.items() if at <= last * 1.01}
        panel.set_xticks(list(ticks), list(ticks.values()))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_minor_locator(NullLocator())
    _guides(scale, tokens, speed, memory, total)


def _outgrows(scale: Scale, curve: Curve) -> bool:
    return not all(map(scale.fits, curve.points))


def _within(scale: Scale, curve: Curve) -> tuple[int, float]:
    """Points of a curve up to the first that does not fit, and the length at which none fits any more."""
    points = curve.points
    over = [i for i, point in enumerate(points) if not scale.fits(point)]
    if not over or over[0] == 0:
        at = 0 if over else len(points)
        return at, points[0 if over else -1].seconds
    before, after = points[over[0] - 1], points[over[0]]
    memory = np.log([before.memory, scale.memory, after.memory])
    seconds = np.log([before.seconds, after.seconds])
    return over[0], float(np.exp(np.interp(memory[1], memory[[0, 2]], seconds)))


def _guides(scale: Scale, tokens: Any, speed: Any, memory: Any, total: Any) -> None:
    """Real time, what fits, cost, and the legend's other marks."""
    quiet = {"color": "#777777", "lw": 0.9, "ls": (0, (1, 2)), "zorder": 0}
    told = {"fontsize": 7.5, "color": "#777777", "va": "bottom"}
    begin = min(curve.points[0].seconds for curve in scale.curves)
    speed.axhline(1, **quiet)
    speed.set_ylim(bottom=min(speed.get_ylim()[0], 0.05))
    speed.text(begin, 0.6, "as fast as it plays", **told | {"va": "top"})
    memory.axhline(scale.memory / GB, **quiet)
    memory.text(
        begin, scale.memory / GB, f"{of_memory(scale.memory)}", fontsize=7.5, color="#777777", va="bottom"
    )
    if scale.checks:
        tokens.plot([], [], "o", color="#777777", ms=6, label="measured")
    if any(_outgrows(scale, curve) for curve in scale.curves):
        tokens.plot([], [], "x", color="#777777", ls=(0, (2, 2)), ms=8, mew=2, label="does not fit beyond")
    for panel in (memory, total):
        panel.set_xlabel("length of the video")
    if scale.price:
        price = scale.price
        right = total.secondary_yaxis("right", functions=(lambda x: x * price, lambda x: x / price))
        right.set_ylabel(f"cost, at {price:g} an hour")
        right.spines["right"].set_visible(False)
