"""What the judgements of an arena come to: a table of rows, who won against whom, and files of both."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framepack.errors import InputError
from framepack.evaluation.arena import ratings
from framepack.evaluation.arena.log import Judgement, JudgementLog
from framepack.evaluation.arena.ratings import Comparison
from framepack.generation.manifest import unwritable, write_file

JSON, CSV = "ratings.json", "ratings.csv"
SCORES = {"left": 1.0, "tie": 0.5, "right": 0.0}
COLUMNS = (
    *("row", "rating", "low", "high", "group", "elo", "elo_rank"),
    *("judgements", "wins", "losses", "ties"),
)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Judgements of one row, or of one row against another."""

    wins: int = 0
    losses: int = 0
    ties: int = 0

    @property
    def judgements(self) -> int:
        return self.wins + self.losses + self.ties

    def to_json(self) -> dict[str, int]:
        return {"judgements": self.judgements, "wins": self.wins, "losses": self.losses, "ties": self.ties}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One row: its Bradley-Terry rating with interval and group, its ELO with rank, and its judgements."""

    row: str
    strength: ratings.Strength
    elo: float
    elo_rank: int
    tally: Tally

    def to_json(self) -> dict[str, Any]:
        """By the names of ``COLUMNS``."""
        return {
            "row": self.row,
            "rating": round(self.strength.rating, 1),
            "low": round(self.strength.low, 1),
            "high": round(self.strength.high, 1),
            "group": self.strength.group,
            "elo": round(self.elo, 1),
            "elo_rank": self.elo_rank,
            **self.tally.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Standings:
    """``rows``: the best first, group by group. ``against``: by two rows, the tally of the first.

    judges: judgements of each, skipped pairs left out; skipped: how many of those there were.
    """

    question: str
    rows: tuple[Standing, ...]
    against: Mapping[tuple[str, str], Tally]
    judges: Mapping[str, int]
    skipped: int

    @property
    def judgements(self) -> int:
        return sum(self.judges.values())

    @property
    def fewest(self) -> int:
        """Judgements of the two rows that have the fewest together."""
        names = [standing.row for standing in self.rows]
        return min(self.against.get((a, b), Tally()).judgements for a in names for b in names if a != b)

    @property
    def groups(self) -> int:
        """More than one: rows of different groups were never compared, and cannot be."""
        return len({standing.strength.group for standing in self.rows})

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "judgements": self.judgements,
            "skipped": self.skipped,
            "judges": dict(self.judges),
            "fewest_of_two_rows": self.fewest,
            "rows": [standing.to_json() for standing in self.rows],
            "against": [
                {"row": row, "other": other, **tally.to_json()}
                for (row, other), tally in sorted(self.against.items())
            ],
            "elo": {"k": ratings.K, "start": ratings.START, "tie_within": ratings.TIE_WITHIN},
            "bradley_terry": {"ties": "Davidson 1970", "interval": 0.95, "prior": ratings.PRIOR},
        }


def standings(log: JudgementLog, question: str | None = None) -> Standings:
    """Ratings from the judgements of one question.

    Args:
        log: as read. question: may be left out where all judgements are of the same.

    Raises:
        InputError: there are no judgements, or of several questions and none is chosen.
    """
    questions = Counter(judgement.pair.question for judgement in log.judgements.values())
    if question is None and len(questions) > 1:
        asked = ", ".join(f"'{text}'" for text in questions)
        raise InputError(f"'{log.path}' has judgements of several questions ({asked}): choose by --question")
    question = question or next(iter(questions), "")
    judged = [one for one in log.judgements.values() if one.pair.question == question]
    counted = [one for one in judged if one.choice != "skip"]
    if not counted:
        of = f" of '{question}'" if question else ""
        raise InputError(f"'{log.path}' has no judgements{of} yet: judge some, without --results")
    comparisons = [_comparison(judgement) for judgement in counted]
    against = _against(comparisons)
    elo = ratings.elo(comparisons)
    elo_ranks = ratings.ranks(elo)
    rows = [
        Standing(
            row=row, strength=strength, elo=elo[row], elo_rank=elo_ranks[row], tally=_total(against, row)
        )
        for row, strength in ratings.bradley_terry(comparisons).items()
    ]
    return Standings(
        question=question,
        rows=tuple(sorted(rows, key=lambda s: (s.strength.group, -s.strength.rating, s.row))),
        against=against,
        judges=dict(sorted(Counter(judgement.pair.judge for judgement in counted).items())),
        skipped=len(judged) - len(counted),
    )


def save_standings(found: Standings, folder: Path) -> None:
    """Write ``ratings.json`` and ``ratings.csv``. Raises OutputError: they cannot be written."""
    _write(folder / JSON, (json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n").encode())
    _write_csv(folder / CSV, COLUMNS, [standing.to_json() for standing in found.rows])


def export(log: JudgementLog, path: Path) -> int:
    """Write every judgement that counts to a CSV, skipped pairs too, and return how many there are.

    Raises:
        OutputError: it cannot be written.
    """
    columns = ("time", "judge", "question", "clip", "left", "right", "choice", "preferred")
    rows = [
        {
            "time": datetime.fromtimestamp(judgement.time, UTC).isoformat(timespec="milliseconds"),
            "choice": judgement.choice,
            "preferred": judgement.pair.row(judgement.choice) or "",
            **{name: getattr(judgement.pair, name) for name in columns[1:6]},
        }
        for judgement in log.judgements.values()
    ]
    _write_csv(path, columns, rows)
    return len(rows)


def _comparison(judgement: Judgement) -> Comparison:
    pair = judgement.pair
    return Comparison(pair.left, pair.right, SCORES[judgement.choice])


def _against(comparisons: Iterable[Comparison]) -> dict[tuple[str, str], Tally]:
    scores: Counter[tuple[str, str, float]] = Counter()
    for left, right, score in comparisons:
        scores[left, right, score] += 1
        scores[right, left, 1 - score] += 1
    return {
        (row, other): Tally(
            wins=scores[row, other, 1.0], losses=scores[row, other, 0.0], ties=scores[row, other, 0.5]
        )
        for row, other in sorted({key[:2] for key in scores})
    }


def _total(against: Mapping[tuple[str, str], Tally], row: str) -> Tally:
    own = [tally for (first, _), tally in against.items() if first == row]
    return Tally(
        wins=sum(t.wins for t in own), losses=sum(t.losses for t in own), ties=sum(t.ties for t in own)
    )


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue().encode())


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    except OSError as error:
        raise unwritable(path, error) from error
