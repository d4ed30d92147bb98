"""What there is of a suite, read from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framepack.evaluation.folder import TOLD, row_folder
from framepack.evaluation.results import ClipScores, Revisit, RowResult, SuiteResult
from framepack.evaluation.suite import CLIPS, FORGOTTEN, REFERENCE, REVISITS, Suite
from framepack.recipes.rows import Row

DRAWN = {
    REFERENCE: "the same scenes drawn by the world, through the codec",
    FORGOTTEN: "the same without what is to come back",
}
"""Rows that the world draws, and what they are."""


def gather(
    suite: Suite, out: Path, command: str, machine: str, unavailable: Mapping[str, str]
) -> SuiteResult:
    """Every row as far as it is, the reference first."""
    there = {row for row, _, _ in suite.videos()}
    rows = [
        _row(suite, out, Row(name=name, method=suite.rows[0].method), note, reference=True)
        for name, note in DRAWN.items()
        if name in there
    ]
    rows += [_row(suite, out, row, row.note) for row in suite.rows]
    rows += [_others(suite, out, name) for name, _ in suite.others]
    return SuiteResult(
        suite=suite.name,
        title=suite.title,
        command=command,
        rows=tuple(rows),
        settings={name: value for name, value in suite.to_json().items() if name not in ("rows", "suite")},
        machine=machine,
        unavailable=unavailable,
    )


def _row(suite: Suite, out: Path, row: Row, note: str, *, reference: bool = False) -> RowResult:
    folder = row_folder(out, row.name)
    scores, returns = records_of(folder, CLIPS), records_of(folder, REVISITS)
    made = [record for record in (*scores.values(), *returns.values()) if "seconds" in record]
    cost: dict[str, float] = {}
    if made:
        cost["generating_seconds"] = sum(record["seconds"] for record in made)
        cost["context_tokens"] = max(record["context_tokens"] for record in made)
    training = None
    if suite.trains and not reference:
        trainer = row_folder(out, row.weights or row.name) / "train"
        training = _training(trainer)
        spent = _json(trainer / "cost.json")
        if spent and row.weights is None:
            cost["training_seconds"] = spent["seconds"]
        card = _json(trainer / "train.json")
        if card:
            cost["samples"] = training[0] * card["draws"] * card["micro"]
    return RowResult(
        name=row.name,
        notation="" if reference else str(row.method),
        note=note,
        clips=tuple(_scores(folder, name, record) for name, record in scores.items()),
        wanted=0 if row.name == FORGOTTEN else suite.budget.clips,
        walks=len(suite.names(REVISITS)) if suite.world else 0,
        revisits=tuple(_revisit(out, folder, name, record) for name, record in returns.items()),
        training=training,
        cost=cost,
        paper=row.paper,
        reference=reference,
    )


def _others(suite: Suite, out: Path, name: str) -> RowResult:
    folder = row_folder(out, name)
    scores = records_of(folder, CLIPS)
    return RowResult(
        name=name,
        note="videos made elsewhere",
        clips=tuple(_scores(folder, clip, record) for clip, record in scores.items()),
        wanted=suite.budget.clips,
    )


def records_of(folder: Path, of: str) -> dict[str, dict[str, Any]]:
    """What is known about a row's videos, by clip."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / TOLD[of]).glob("*.json"))}


def is_told(suite: Suite, out: Path, row: str, of: str, name: str) -> bool:
    """Whether a video is there with all its scores."""
    folder = row_folder(out, row)
    path = folder / TOLD[of] / f"{name}.json"
    if not (path.exists() and (folder / of / f"{name}.mp4").exists()):
        return False
    record = json.loads(path.read_text())
    return "error" in record if of == REVISITS else set(suite.metrics) <= set(record.get("values", {}))


def count_told(suite: Suite, out: Path) -> int:
    """Videos that are there with all their scores."""
    return sum(is_told(suite, out, row, of, name) for row, of, names in suite.videos() for name in names)


def _scores(folder: Path, name: str, record: dict[str, Any]) -> ClipScores:
    values = {
        metric: tuple(math.nan if score is None else float(score) for score in scores)
        for metric, scores in record["values"].items()
    }
    return ClipScores(clip=name, video=folder / CLIPS / f"{name}.mp4", values=values)


def _revisit(out: Path, folder: Path, name: str, record: dict[str, Any]) -> Revisit:
    return Revisit(
        clip=name,
        away=tuple(record["away"]),
        error=tuple(record["error"]),
        at=tuple(record["at"]),
        video=folder / REVISITS / f"{name}.mp4",
        truth=row_folder(out, REFERENCE) / REVISITS / f"{name}.mp4",
    )


def _training(folder: Path) -> tuple[int, int]:
    """(finished steps, all steps) of a fine-tune."""
    card = _json(folder / "train.json")
    if not card:
        return 0, 1
    rows = folder / "metrics.jsonl"
    lines = rows.read_text().splitlines() if rows.exists() else []
    done = json.loads(lines[-1])["step"] if lines else 0
    return min(done, card["steps"]), card["steps"]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
