"""The report of a suite: one page that needs nothing else, and the files beside it.

table.csv, table.md, report.html, plots/NAME.png and plots/NAME.svg; each is whole or absent, and written
anew as often as wished while rows are still coming.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from framepack.evaluation.analysis import LEVEL, Measured, MetricInfo, measured
from framepack.evaluation.findings import findings
from framepack.evaluation.folder import slug
from framepack.evaluation.pictures import Picture, inline, saved, strips_of
from framepack.evaluation.plots import plots
from framepack.evaluation.results import SuiteResult
from framepack.evaluation.strips import drift_measure
from framepack.evaluation.tables import state, tables
from framepack.evaluation.texts import as_csv, as_markdown, setting
from framepack.generation.manifest import unwritable, write_file
from framepack.metrics.drift import SHARE
from framepack.metrics.significance import FEWEST

PAGE, STYLE, SCRIPT = "report.html", "report.css", "report.js"
TOPICS = {
    "drift": "Drift",
    "scores": "Scores",
    "forgetting": "Forgetting",
    "paradox": "Forgetting against drift",
    "paper": "Beside the paper",
}
"""Of findings; what is not finished is told before them."""
SECTIONS = {
    "findings": "Main findings",
    "paradox": "Forgetting against drift",
    "drift": "Drift",
    "scores": "Scores",
    "time": "Over time",
    "forgetting": "Forgetting",
    "frames": "Frames",
    "paper": "Beside the paper",
    "cost": "Cost",
    "rows": "Rows",
    "metrics": "Metrics and statistics",
    "limitations": "Limitations",
}
"""By id in the page, in its order."""


def write_all(
    result: SuiteResult, out: Path, metrics: Mapping[str, MetricInfo], *, against: str | None = None
) -> None:
    """Write everything that is told of a suite into its folder.

    Args:
        metrics: the table of metrics. against: the row that others are compared with, see `measured`.

    Raises:
        InputError: there is no row of that name.
        OutputError: the folder cannot be written.
    """
    found = measured(result, metrics, against=against)
    try:
        (out / "plots").mkdir(parents=True, exist_ok=True)
        write_file(out / "table.csv", as_csv(found).encode())
        write_file(out / "table.md", as_markdown(found).encode())
        pictures = []
        for plot in plots(found):
            svg, name = saved(plot, "svg"), slug(plot.key)
            write_file(out / "plots" / f"{name}.svg", svg)
            write_file(out / "plots" / f"{name}.png", saved(plot, "png"))
            pictures.append(Picture(plot.key, name, plot.title, plot.told, inline(svg.decode(), name)))
        write_file(out / PAGE, page(found, pictures).encode())
    except OSError as error:
        raise unwritable(out, error) from error


def page(found: Measured, pictures: Sequence[Picture]) -> str:
    """The page, as HTML. Nothing in it is fetched from elsewhere, and no script but its own runs in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["setting"] = setting
    script = (folder / SCRIPT).read_text(encoding="utf-8")
    all_tables = {table.key: table for table in tables(found)}
    drawings = {picture.key: picture for picture in pictures}
    curves = [picture for picture in pictures if picture.key.startswith("curve-")]
    strips = strips_of(found)
    there = {
        "findings": True,
        "paradox": "paradox" in drawings,
        "drift": "drift" in all_tables,
        "scores": "value" in all_tables,
        "time": bool(curves),
        "forgetting": "revisits" in all_tables,
        "frames": bool(strips.same or strips.rows or strips.walks),
        "metrics": True,
        "limitations": True,
    }
    result = found.result
    return environment.get_template(PAGE).render(
        result=result,
        clips=max((len(row.clips) for row in result.rows), default=0),
        walks=max((len(row.revisits) for row in result.rows), default=0),
        sections=[(id, title) for id, title in SECTIONS.items() if there.get(id, id in all_tables)],
        waiting=[(row.name, state(row)) for row in result.rows if not row.finished],
        findings=[
            (TOPICS[topic], [finding.text for finding in group])
            for topic, group in itertools.groupby(findings(found), key=lambda finding: finding.topic)
            if topic in TOPICS
        ],
        tables=all_tables,
        pictures=drawings,
        curves=curves,
        strips=strips,
        chosen_by=drift_measure(found),
        against=None if found.against is None else found.name(found.against),
        metrics=found.metrics,
        absent=found.absent,
        limitations=limitations(found),
        share=f"{SHARE:.0%}",
        level=f"{LEVEL:.0%}",
        fewest=FEWEST,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((folder / STYLE).read_text(encoding="utf-8")),
    )


def limitations(found: Measured) -> list[str]:
    """What a reader must not conclude."""
    rows, told = found.rows, []
    if any(row.reference for row in rows):
        told.append(
            "The clips show a small drawn world: flat shapes, few words, low resolution. What drifts and is "
            "forgotten in it need not be what drifts in filmed videos."
        )
    if any(row.training is not None for row in rows):
        steps = max(row.training[1] for row in rows if row.training is not None)
        told += [
            "All rows begin from one checkpoint, which was itself trained on FramePack's methods: that "
            "favours rows that are near to what it has learned.",
            f"Fine-tunes are short, {steps:,} steps at most, and each was done once, with one seed: "
            "intervals tell of other clips, not of other trainings.",
        ]
    else:
        told.append("Each row is one set of weights: intervals tell of other clips, not of other trainings.")
    return [
        *told,
        "The paper's models are far larger and its clips longer: only the order of rows is compared with it.",
        "No difference found is not the same as no difference: few clips find only large ones.",
    ]
