"""Numbers of a suite, by row and clip, and what can be said about them: means, intervals, differences.

A measure is one number for every row and clip: the score of a metric, its drift, or how far a place is from
what it was when it comes back. A clip that lacks it is left out and counted, never filled in. Frames in which
there is nothing to score (NaN) are left out of their clip; where they are most of them, the clip is.

Legend: M measures of a kind, R rows, C clips, of which each row may lack some (NaN).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from framepack.errors import UnknownNameError
from framepack.evaluation.results import RowResult, SuiteResult
from framepack.metrics.bootstrap import bootstrap_means
from framepack.metrics.drift import drift_of
from framepack.metrics.significance import FEWEST, family_p

Floats = NDArray[np.float64]

LEVEL = 0.05
"""Of chance, for a difference to be claimed: over all pairs of rows and all metrics of a kind together."""
BASELINE = "vanilla"
REVISIT = "revisit error"
LEAST = 0.25
"""Share of a video's frames that must have scores: a shape may be out of view for a while."""
BINS = 5
"""At most, of frames away."""


class MetricInfo(Protocol):
    """What is told of a metric; ``better`` is "higher", "lower" or "neither", ``per`` what has one score."""

    @property
    def title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def better(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def stands_for(self) -> str | None: ...
    @property
    def per(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A metric that the table of metrics does not have."""

    title: str
    unit: str = ""
    better: str = "neither"
    source: str = ""
    stands_for: str = ""
    per: str = "frame"


@dataclass(frozen=True)
class Estimate:
    """A mean over ``clips`` clips with its 95 % interval; NaN without clips, or without enough for one."""

    value: float
    low: float
    high: float
    clips: int


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One kind of number: ``kind`` is value, drift, beyond or revisit.

    Attributes:
        metric: its name; ``title`` for people, with ``unit``.
        better: higher, lower or neither.
        samples: (R, C).
        estimates: R of them. differences: of each row to the one that others are compared with, clip by clip.
        p: (R, R), of the difference between two rows being chance, for the family of all that are compared
            in this kind; NaN for rows that are not compared. See `family_p`.
    """

    metric: str
    kind: str
    title: str
    unit: str
    better: str
    samples: Floats
    estimates: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]
    p: Floats

    @property
    def sign(self) -> int:
        """1 where a higher number is better, -1 where a lower one is; 0 for neither."""
        return {"higher": 1, "lower": -1}.get(self.better, 0)

    def difference(self, row: int, other: int) -> Estimate:
        """``row`` less ``other`` over the clips that both have, clip by clip."""
        return estimates((self.samples[row] - self.samples[other])[None])[0]

    def differ(self, row: int, other: int) -> bool:
        return bool(self.p[row, other] < LEVEL)

    def compared(self) -> list[int]:
        """Rows that are compared: finished, generated, and with a number."""
        return [row for row in range(len(self.p)) if not np.isnan(self.p[row, row])]

    def best(self) -> int | None:
        """The row with the best mean over the clips that all compared rows have; None where there is none."""
        rows = self.compared()
        common = ~np.isnan(self.samples[rows]).any(axis=0)
        if len(rows) < 2 or not self.sign or not common.any():
            return None
        return rows[int(np.argmax(self.sign * self.samples[rows][:, common].mean(axis=1)))]

    def not_told_apart(self, row: int) -> list[int]:
        """Compared rows that no difference to ``row`` is found for."""
        return [other for other in self.compared() if other != row and not self.differ(row, other)]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A suite and its numbers.

    Attributes:
        metrics: those with scores, in the order of the table of metrics. absent: of the others, why.
        measures: by kind and metric. bins: of the revisit error, by frames away, with the title of each.
        growth: of the revisit error from the nearest to the farthest bin, in place of a row's own error.
        reference, against: rows by number; None where there is none.
        lost: clips left out because most of their scores are no finite numbers, by row and metric.
    """

    result: SuiteResult
    metrics: Mapping[str, MetricInfo]
    absent: Mapping[str, str]
    measures: Mapping[tuple[str, str], Measure]
    bins: tuple[tuple[str, tuple[Estimate, ...]], ...]
    growth: tuple[tuple[Estimate, float], ...]
    reference: int | None
    against: int | None
    lost: Mapping[tuple[int, str], int]

    @property
    def rows(self) -> tuple[RowResult, ...]:
        return self.result.rows

    def of(self, kind: str) -> list[Measure]:
        return [measure for measure in self.measures.values() if measure.kind == kind]

    def name(self, row: int) -> str:
        return self.rows[row].name


def measured(
    result: SuiteResult, metrics: Mapping[str, MetricInfo], *, against: str | None = None
) -> Measured:
    """All numbers of a suite, however much of it is there.

    Args:
        against: the row that others are compared with; by default the one called ... vanilla, else the first
            that is generated and has scores.

    Raises:
        InputError: there is no such row.
    """
    rows, chosen = result.rows, _against(result.rows, against)
    scored = list(dict.fromkeys(name for row in rows for clip in row.clips for name in clip.values))
    known = [name for name in metrics if name in scored]
    infos: dict[str, MetricInfo] = {name: metrics[name] for name in known}
    infos |= {name: Plain(title=name) for name in scored if name not in infos}
    absent = {name: "no clip has a score of it" for name in metrics if name not in infos}
    reference = next((n for n, row in enumerate(rows) if row.reference), None)
    samples, lost = _samples(result, infos, reference)
    walks, ways = _revisits(result)
    if len(walks) and not np.isnan(walks).all():
        samples["revisit", REVISIT] = walks
    found = {kind: [key for key in samples if key[0] == kind] for kind, _ in samples}
    measures = {}
    for keys in found.values():
        compared = [[_is_compared(row, samples[key][n]) for n, row in enumerate(rows)] for key in keys]
        for key, p in zip(keys, _pairs([samples[key] for key in keys], compared), strict=True):
            measures[key] = _measure(*key, infos, samples[key], p, chosen)
    bins = tuple((title, estimates(part)) for title, part in ways)
    return Measured(
        result=result,
        metrics=infos,
        absent=absent | {name: why for name, why in result.unavailable.items() if name not in infos},
        measures=measures,
        bins=bins,
        growth=_growth(rows, ways),
        reference=reference,
        against=chosen,
        lost=lost,
    )


def estimates(samples: Floats) -> tuple[Estimate, ...]:
    """Of each row of (R, C)."""
    counts = (~np.isnan(samples)).sum(axis=1)
    found = bootstrap_means(samples.T)
    found[1:, counts < FEWEST] = np.nan
    return tuple(
        Estimate(float(value), float(low), float(high), int(count))
        for (value, low, high), count in zip(found.T, counts, strict=True)
    )


def _measure(
    kind: str, metric: str, infos: Mapping[str, MetricInfo], samples: Floats, p: Floats, against: int | None
) -> Measure:
    info = infos.get(metric, Plain(title="Revisit error"))
    return Measure(
        metric=metric,
        kind=kind,
        title=info.title,
        unit=info.unit,
        better=info.better if kind == "value" else "lower",
        samples=samples,
        estimates=estimates(samples),
        differences=() if against is None else estimates(samples - samples[against]),
        p=p,
    )


def _against(rows: Sequence[RowResult], wanted: str | None) -> int | None:
    names = [row.name for row in rows]
    if wanted is not None:
        if wanted not in names:
            raise UnknownNameError("row", wanted, names)
        return names.index(wanted)
    made = [n for n, row in enumerate(rows) if not row.reference and (row.clips or row.revisits)]
    return next((n for n in made if names[n].split()[-1:] == [BASELINE]), made[0] if made else None)


def _is_compared(row: RowResult, samples: Floats) -> bool:
    return row.finished and not row.reference and not np.isnan(samples).all()


# Samples -----------------------------------------------------------------------------------------------


def _samples(
    result: SuiteResult, metrics: Iterable[str], reference: int | None
) -> tuple[dict[tuple[str, str], Floats], dict[tuple[int, str], int]]:
    """By kind and metric (R, C), without what no row has; and clips lost, by row and metric."""
    names = dict.fromkeys(clip.clip for row in result.rows for clip in row.clips)
    places = {name: n for n, name in enumerate(names)}
    found: dict[tuple[str, str], Floats] = {}
    lost: dict[tuple[int, str], int] = {}
    kinds = ("value", "drift", "beyond")
    for metric in metrics:
        parts = {kind: np.full((len(result.rows), len(places)), np.nan) for kind in kinds}
        scores = [
            {clip.clip: np.asarray(clip.values[metric], float) for clip in row.clips if metric in clip.values}
            for row in result.rows
        ]
        truths = scores[reference] if reference is not None else {}
        for n, row in enumerate(scores):
            for clip, values in row.items():
                scored, at, truth = _scored(values), (n, places[clip]), truths.get(clip)
                if not len(scored):
                    lost[n, metric] = lost.get((n, metric), 0) + 1
                    continue
                parts["value"][at] = scored.mean()
                parts["drift"][at] = drift_of(values)
                if truth is not None and n != reference and len(truth) == len(values):
                    parts["beyond"][at] = drift_of(values - truth)
        found |= {(kind, metric): part for kind, part in parts.items() if not np.isnan(part).all()}
    return {key: found[key] for kind in kinds for key in found if key[0] == kind}, lost


def _scored(values: Floats) -> Floats:
    """The finite ones; none, where they are fewer than `LEAST` of all."""
    kept = values[np.isfinite(values)]
    return kept if len(kept) >= LEAST * len(values) else kept[:0]


def _revisits(result: SuiteResult) -> tuple[Floats, list[tuple[str, Floats]]]:
    """The error (R, C) over all comparisons of a walk, and title and (R, C) of each bin of frames away."""
    names = dict.fromkeys(walk.clip for row in result.rows for walk in row.revisits)
    places = {name: n for n, name in enumerate(names)}
    held: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for n, row in enumerate(result.rows):
        for walk in row.revisits:
            pairs = zip(walk.away, walk.error, strict=True)
            finite = [(away, error) for away, error in pairs if np.isfinite(error)]
            held.setdefault((n, places[walk.clip]), []).extend(finite)

    def mean(keep: Sequence[int] | None) -> Floats:
        part = np.full((len(result.rows), len(places)), np.nan)
        for at, pairs in held.items():
            errors = [error for away, error in pairs if keep is None or away in keep]
            if errors:
                part[at] = np.mean(errors)
        return part

    distinct = sorted({away for pairs in held.values() for away, _ in pairs})
    bins = [part.tolist() for part in np.array_split(np.array(distinct, int), BINS) if len(part)]
    return mean(None), [(_range(part), mean(part)) for part in bins]


def _range(part: Sequence[int]) -> str:
    return f"{part[0]}" if len(part) == 1 else f"{part[0]} to {part[-1]}"


def _growth(
    rows: Sequence[RowResult], ways: Sequence[tuple[str, Floats]]
) -> tuple[tuple[Estimate, float], ...]:
    """For each row how much the error grows from the nearest to the farthest bin, and p over all rows."""
    if len(ways) < 2:
        return ()
    samples = ways[-1][1] - ways[0][1]
    counted = np.array([[_is_compared(row, samples[n])] for n, row in enumerate(rows)])
    p = family_p(np.where(counted, samples, np.nan).T)
    return tuple(zip(estimates(samples), map(float, p), strict=True))


def _pairs(samples: Sequence[Floats], compared: Sequence[Sequence[bool]]) -> list[Floats]:
    """p of all pairs of compared rows in all measures of one kind, one family: (R, R) for each measure."""
    found = [np.full((len(part), len(part)), np.nan) for part in samples]
    pairs, columns = [], []
    for n, (part, counts) in enumerate(zip(samples, compared, strict=True)):
        rows = [row for row, counted in enumerate(counts) if counted]
        found[n][rows, rows] = 1
        for row, other in combinations(rows, 2):
            pairs.append((n, row, other))
            columns.append(part[row] - part[other])
    if columns:
        for (n, row, other), p in zip(pairs, family_p(np.stack(columns, axis=1)), strict=True):
            found[n][row, other] = found[n][other, row] = p
    return found
