"""A suite as text: its numbers as CSV, its findings and tables as Markdown."""

from __future__ import annotations

import csv
import io
import json

from framepack.evaluation.analysis import REVISIT, Estimate, Measured
from framepack.evaluation.cells import NOTHING, markdown_text
from framepack.evaluation.findings import findings
from framepack.evaluation.tables import tables

FIELDS = ("suite", "row", "metric", "kind", "value", "low", "high", "clips", "against", "p")


def as_csv(found: Measured) -> str:
    """One number a line: kind is value, drift, beyond or revisit; against a row the paired difference."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)

    def line(
        row: int, metric: str, kind: str, e: Estimate, against: str = "", p: float | None = None
    ) -> None:
        numbers = ["" if value != value else f"{value:.8g}" for value in (e.value, e.low, e.high)]
        told = "" if p is None or p != p else f"{p:.4g}"
        writer.writerow([found.result.suite, found.name(row), metric, kind, *numbers, e.clips, against, told])

    for measure in found.measures.values():
        for row, estimate in enumerate(measure.estimates):
            if estimate.clips:
                line(row, measure.metric, measure.kind, estimate)
            if found.against is not None and row != found.against:
                difference = measure.differences[row]
                if difference.clips:
                    p = float(measure.p[row, found.against])
                    line(row, measure.metric, measure.kind, difference, found.name(found.against), p)
    for title, parts in found.bins:
        for row, estimate in enumerate(parts):
            if estimate.clips:
                line(row, f"{REVISIT}, {title} frames away", "revisit", estimate)
    nan = float("nan")
    for n, told in enumerate(found.rows):
        for name, value in told.cost.items():
            line(n, name, "cost", Estimate(value, nan, nan, len(told.clips)))
        for name, value in told.paper.items():
            line(n, name, "paper", Estimate(value, nan, nan, 0))
    return out.getvalue()


def as_markdown(found: Measured) -> str:
    """Findings, settings and all tables."""
    result = found.result
    lines = [f"# {markdown_text(result.title)}", ""]
    for finding in findings(found):
        lines.append(f"- {markdown_text(finding.text)}")
    lines += ["", f"    {' '.join(result.command.split())}", ""]
    if result.machine:
        lines += [markdown_text(result.machine), ""]
    lines += [table.markdown() for table in tables(found)]
    if found.absent:
        lines += ["## Not measured", ""]
        lines += [f"- {markdown_text(name)}: {markdown_text(why)}" for name, why in found.absent.items()] + [
            ""
        ]
    if result.settings:
        lines += ["## Settings", ""]
        lines += [
            f"- {markdown_text(f'{name}: {setting(value)}')}" for name, value in result.settings.items()
        ]
    return "\n".join([*lines, ""])


def setting(value: object) -> str:
    """A setting for people."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting(part)}" for name, part in value.items()) or NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or NOTHING
    return json.dumps(value, default=str)
