"""The tables of a suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from framepack.evaluation.analysis import REVISIT, Estimate, Measure, Measured, MetricInfo, measured
from framepack.evaluation.cells import (
    Cell,
    Column,
    Table,
    digits_of,
    estimate_cell,
    number,
)
from framepack.evaluation.paper import counterparts, figures
from framepack.evaluation.results import RowResult, SuiteResult
from framepack.metrics.drift import SHARE
from framepack.metrics.significance import FEWEST

if TYPE_CHECKING:
    from rich.console import RenderableType

KINDS = {"value": "Scores", "drift": "Drift", "beyond": "Drift beyond the world's"}
BETTER = {"higher": "\u00a0↑", "lower": "\u00a0↓", "neither": ""}
"""After a metric's name, on the same line."""
COSTS: Mapping[str, tuple[str, str, float]] = {
    "training_seconds": ("training", "min", 1 / 60),
    "samples": ("samples learned from", "", 1),
    "generating_seconds": ("generating", "s a video", 1),
    "context_tokens": ("context", "tokens", 1),
}
"""By name of the cost: its heading, its unit, and what turns the one into the other."""

INTERVALS = "mean over clips, in brackets its 95 % bootstrap interval; n: clips, where some are missing"
CLAIMS = (
    "*: more than chance at 5 %, over all pairs of finished rows and all columns of this kind together "
    "(sign-flip test, largest t); an interval without 0 and no star may be one of many"
)


def shown(
    result: SuiteResult, metrics: Mapping[str, MetricInfo], width: int = 120
) -> Iterator[RenderableType]:
    """All tables with their notes, for a terminal of ``width`` columns."""
    from rich.text import Text

    for table in tables(measured(result, metrics)):
        yield from table.rich(width)
        yield Text("\n".join(f"  {note}" for note in table.notes), style="dim")


def tables(found: Measured) -> Iterator[Table]:
    """All that there are numbers for."""
    yield rows_table(found)
    for kind in KINDS:
        if found.of(kind):
            yield kind_table(found, kind)
            if found.against is not None and len(found.rows) > 1 and kind != "beyond":
                yield paired_table(found, kind, found.against)
    if found.bins:
        yield revisit_table(found)
    if any(found.of(kind) for kind in KINDS):
        yield rank_table(found)
    if any(row.cost for row in found.rows):
        yield cost_table(found)
    if figures(found):
        yield paper_table(found)


def state(row: RowResult) -> str:
    """How far a row is."""
    if row.finished:
        return "finished"
    parts = []
    if row.training is not None and row.training[0] < row.training[1]:
        parts.append(f"training, {row.training[0]:,} of {row.training[1]:,} steps")
    if row.clips or not parts:
        parts.append(f"{len(row.clips)} of {row.wanted} clips")
        if row.walks:
            parts.append(f"{len(row.revisits)} of {row.walks} walks")
    return "; ".join(parts)


def rows_table(found: Measured) -> Table:
    rows = []
    for row in found.rows:
        trained = "" if row.training is None else f"{row.training[0]:,} steps"
        cells = (Cell(row.notation, code=True), Cell(row.note), Cell(trained))
        rows.append(
            (Cell(row.name), *cells, Cell(f"{len(row.clips)}", number=len(row.clips)), Cell(state(row)))
        )
    words = [Column(title, words=True) for title in ("row", "method", "what it is", "fine-tuned")]
    return Table(
        key="rows",
        title="Rows",
        columns=(*words, Column("clips"), Column("state", words=True)),
        rows=tuple(rows),
        notes=(
            "method, in the paper's notation: fNkM is N frames at kernel kM, gN the N frames that are made, "
            "x a gap, td, ta or tc what becomes of older frames; in the order of time",
        ),
    )


def kind_table(found: Measured, kind: str) -> Table:
    """A column for each metric."""
    measures = found.of(kind)
    notes = [INTERVALS]
    if kind != "value":
        ends = f"|mean of the first {SHARE:.0%} - mean of the last {SHARE:.0%} of frames|"
        notes[:0] = [f"{ends}, clip by clip, in units of the metric; lower is better"]
    if kind == "beyond":
        world = found.name(found.reference or 0)
        notes[:0] = [
            f"of the difference to {world}, frame by frame: what the scene changes is not the model's drift"
        ]
    elif kind == "drift" and found.reference is not None:
        notes.append(
            f"{found.name(found.reference)} is not generated: its contrast is what there is without drifting"
        )
    if any(measure.best() is not None for measure in measures):
        notes.append(
            "bold: best of the finished rows, which alone says nothing; see what is told apart from it"
        )
    few = [row for row in found.rows if 0 < len(row.clips) < FEWEST]
    if few:
        notes.append(f"fewer than {FEWEST} clips have no interval")
    lost: dict[int, int] = {}
    for (row, _), count in found.lost.items():
        lost[row] = max(lost.get(row, 0), count)
    notes += [
        f"{found.name(row)}: up to {count} clips left out, with scores in too few of their frames"
        for row, count in lost.items()
    ]
    arrow = (lambda m: BETTER[m.better]) if kind == "value" else (lambda m: "")
    columns = [Column(f"{m.title}{arrow(m)}", m.unit) for m in measures]
    return _table(
        found,
        key=kind,
        title=KINDS[kind],
        columns=columns,
        cells=[_column(found, m) for m in measures],
        notes=notes,
        skip=[found.reference] if kind == "beyond" else [],
    )


def paired_table(found: Measured, kind: str, against: int) -> Table:
    """Differences to one row, clip by clip."""
    name = found.name(against)
    columns, cells = [], []
    for measure in found.of(kind):
        columns.append(Column(f"{measure.title}{BETTER[measure.better]}", measure.unit))
        cells.append(_differences(measure, against))
    less = "drifts less" if kind == "drift" else "is lower"
    return _table(
        found,
        key=f"{kind}-paired",
        title=f"{KINDS[kind]}, less {name}'s",
        columns=columns,
        cells=cells,
        notes=[
            f"clip by clip, over the clips that both have: surer than two intervals; below 0 a row {less}",
            INTERVALS,
            CLAIMS,
        ],
    )


def revisit_table(found: Measured) -> Table:
    """How far what comes back is from what it was, by frames away."""
    columns = [Column(title, "frames away") for title, _ in found.bins]
    cells = []
    for _, parts in found.bins:
        digits, whole_bin = digits_of(parts), max(part.clips for part in parts)
        cells.append([estimate_cell(part, digits, of=whole_bin) for part in parts])
    whole = found.measures.get(("revisit", REVISIT))
    notes = [
        "a place that comes into view again, against what it was when it was last in view: 0 is the same; "
        "mean over walks, in brackets its 95 % bootstrap interval; a walk on which the place never leaves "
        "the view, because the video does not follow the camera, does not count (n)"
    ]
    if whole is not None:
        columns.append(Column("all"))
        cells.append(_column(found, whole))
        if found.against is not None:
            columns.append(Column(f"all, less {found.name(found.against)}'s"))
            cells.append(_differences(whole, found.against))
            notes.append(CLAIMS)
    return _table(found, key="revisits", title="Revisits", columns=columns, cells=cells, notes=notes)


def rank_table(found: Measured) -> Table:
    """In how many metrics each row is best, and in how many no difference to the best is found."""
    columns, cells = [], []
    for kind, title in KINDS.items():
        bests = [(m, best) for m in found.of(kind) if (best := m.best()) is not None]
        if not bests:
            continue
        first, near = [0] * len(found.rows), [0] * len(found.rows)
        for measure, best in bests:
            first[best] += 1
            for row in (best, *measure.not_told_apart(best)):
                near[row] += 1
        most = max(first)
        columns += [
            Column(f"{title}: best", f"of {len(bests)}"),
            Column("or not told apart", f"of {len(bests)}"),
        ]
        cells.append([Cell(str(n), number=n, mark="best" if n == most else "") for n in first])
        cells.append([Cell(str(n), number=n) for n in near])
    skip = [n for n, row in enumerate(found.rows) if row.reference or not row.finished]
    return _table(
        found,
        key="ranks",
        title="In how many metrics a row is best",
        columns=columns,
        cells=cells,
        notes=[
            "finished rows, over the clips that all of them have; what is better neither high nor low "
            "counts for drift only",
            "not told apart: no difference to the best is found, which with few clips is so of most rows",
        ],
        skip=skip,
    )


def cost_table(found: Measured) -> Table:
    names = [name for name in COSTS if any(name in row.cost for row in found.rows)]
    names += [n for n in dict.fromkeys(n for row in found.rows for n in row.cost) if n not in COSTS]
    columns, cells = [], []
    for name in names:
        title, unit, factor = COSTS.get(name, (name.replace("_", " "), "", 1))
        values = [cost_of(row, name) * factor for row in found.rows]
        digits = (
            digits_of(Estimate(v, v, v, 1) for v in values) if any(v % 1 for v in values if v == v) else 0
        )
        columns.append(Column(title, unit))
        cells.append([Cell(number(v, digits), number=None if v != v else v) for v in values])
    return _table(found, key="cost", title="Cost", columns=columns, cells=cells, notes=[])


def cost_of(row: RowResult, name: str) -> float:
    """NaN where it is not known; seconds of generating are those of one video."""
    value = row.cost.get(name, float("nan"))
    if name == "generating_seconds":
        videos = len(row.clips) + len(row.revisits)
        return value / videos if videos else float("nan")
    return value


def paper_table(found: Measured) -> Table:
    """The paper's figures, each with what stands for it here."""
    columns, cells = [], []
    for figure in figures(found):
        values = [row.paper.get(figure) for row in found.rows]
        columns.append(Column(figure, "paper"))
        cells.append([Cell() if v is None else Cell(f"{v:g}", number=v) for v in values])
        for measure, near in counterparts(found, figure):
            own = _column(found, measure)
            here = "nearest here" if near else "here"
            columns.append(Column(measure.title, f"{here}, {measure.unit}" if measure.unit else here))
            cells.append([Cell() if v is None else cell for v, cell in zip(values, own, strict=True)])
    skip = [n for n, row in enumerate(found.rows) if not row.paper]
    notes = [
        "the paper's models, clips and metrics are others: orders can be compared, numbers cannot",
        "nearest here: another metric of a like subject, which does not stand for the paper's",
        INTERVALS,
    ]
    return _table(
        found, key="paper", title="Beside the paper", columns=columns, cells=cells, notes=notes, skip=skip
    )


def _column(found: Measured, measure: Measure) -> list[Cell]:
    digits, best = digits_of(measure.estimates), measure.best()
    whole = max((estimate.clips for estimate in measure.estimates), default=0)
    return [
        estimate_cell(estimate, digits, mark="best" if row == best else "", of=whole)
        for row, estimate in enumerate(measure.estimates)
    ]


def _differences(measure: Measure, against: int) -> list[Cell]:
    """Of each row to one, marked where they are more than chance."""
    digits = digits_of(e for row, e in enumerate(measure.differences) if row != against)
    cells = []
    for row, found in enumerate(measure.differences):
        if row == against and found.clips:
            cells.append(Cell("="))
            continue
        mark = ""
        if measure.differ(row, against):
            side = measure.sign * found.value
            mark = "better" if side > 0 else "worse" if side < 0 else "differs"
        whole = max(measure.estimates[row].clips, measure.estimates[against].clips)
        cells.append(estimate_cell(found, digits, signed=True, mark=mark, of=whole))
    return cells


def _table(
    found: Measured,
    *,
    key: str,
    title: str,
    columns: Sequence[Column],
    cells: Sequence[Sequence[Cell]],
    notes: Sequence[str],
    skip: Sequence[int | None] = (),
) -> Table:
    """From columns of cells; rows that are not finished say so."""
    rows = []
    for n, row in enumerate(found.rows):
        if n not in skip:
            detail = "" if row.finished else "not finished"
            rows.append((Cell(row.name, detail), *(column[n] for column in cells)))
    return Table(
        key=key,
        title=title,
        columns=(Column("row", words=True), *columns),
        rows=tuple(rows),
        notes=tuple(notes),
    )
