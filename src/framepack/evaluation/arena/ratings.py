"""Ratings from comparisons of two: ELO, which goes by their order, and Bradley-Terry, which does not.

Both are in ELO units: 400 more means that one is preferred ten times as often. They depend on differences
alone, and their mean is 1000.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

START = 1000.0
SCALE = 400.0
K = 32.0
TIE_WITHIN = 16.0
"""The paper takes rows whose ELO differs by no more as tied."""

PRIOR = 400.0
"""Standard deviation, in ELO units, of the normal prior that keeps Bradley-Terry ratings finite."""

_UNIT = SCALE / np.log(10)
"""ELO units of one nat."""

WIN_TIE_LOSS = (1.0, 0.5, 0.0)

Array = NDArray[np.float64]


class Comparison(NamedTuple):
    """``score``: 1 where ``left`` was preferred, 0 where ``right`` was, 0.5 for a tie."""

    left: str
    right: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Strength:
    """A Bradley-Terry rating with its interval, in ELO units, relative to the mean of its ``group``.

    group: rows that comparisons link, numbered from 0; rows of different groups cannot be compared.
    """

    rating: float
    low: float
    high: float
    group: int


def elo(comparisons: Iterable[Comparison], *, k: float = K, start: float = START) -> dict[str, float]:
    """ELO of each row after comparisons in their order.

    Elo (1978): with E = 1 / (1 + 10^((R_right - R_left) / 400)), R_left grows by k (score - E) and R_right
    falls by as much. The paper has k = 32.
    """
    ratings: dict[str, float] = {}
    for left, right, score in comparisons:
        before = ratings.setdefault(left, start), ratings.setdefault(right, start)
        expected = 1 / (1 + 10 ** ((before[1] - before[0]) / SCALE))
        gained = k * (score - expected)
        ratings[left], ratings[right] = before[0] + gained, before[1] - gained
    return ratings


def ranks(ratings: Mapping[str, float], *, tie_within: float = TIE_WITHIN) -> dict[str, int]:
    """1 and the number of rows that are better by more than ``tie_within``; so several may share a rank."""
    return {
        row: 1 + sum(other > own + tie_within for other in ratings.values()) for row, own in ratings.items()
    }


def bradley_terry(
    comparisons: Sequence[Comparison], *, prior: float = PRIOR, level: float = 0.95
) -> dict[str, Strength]:
    """Strengths under which the comparisons are likeliest, whatever their order.

    Bradley-Terry with ties after Davidson (1970): with strengths s and one parameter t for all,
    left is preferred, tied or not preferred with probabilities in the ratio e^s_left :
    e^(t + (s_left + s_right) / 2) : e^s_right. The log-likelihood is concave, and Newton's method finds its
    maximum. A weak normal prior on s and t keeps rows that won or lost everything finite, and groups of rows
    that were never compared apart; it shifts nothing where there are many judgements.

    Intervals are from the Fisher information, with each group's mean held fixed. They take judgements as
    independent of one another.

    Args:
        prior: standard deviation of the prior, in ELO units. level: of the intervals.
    """
    rows = sorted({row for comparison in comparisons for row in comparison[:2]})
    if not rows:
        return {}
    features, counts = _design(rows, comparisons)
    solution, hessian = _maximise(features, counts, precision=(_UNIT / prior) ** 2)
    group = _groups(rows, comparisons)
    same = (group[:, None] == group[None, :]).astype(float)
    centre = np.eye(len(rows)) - same / same.sum(1)
    covariance = centre @ np.linalg.inv(hessian)[: len(rows), : len(rows)] @ centre
    ratings = START + _UNIT * (centre @ solution[: len(rows)])
    half = NormalDist().inv_cdf((1 + level) / 2) * _UNIT * np.sqrt(np.diag(covariance).clip(min=0))
    return {
        row: Strength(rating=float(r), low=float(r - h), high=float(r + h), group=int(g))
        for row, r, h, g in zip(rows, ratings, half, group, strict=True)
    }


def _design(rows: list[str], comparisons: Sequence[Comparison]) -> tuple[Array, Array]:
    """Pairs of rows P, rows R: features (P, 3, R + 1) of win, tie and loss, and how often each was (P, 3)."""
    index = {row: i for i, row in enumerate(rows)}
    outcomes: dict[tuple[int, int], list[int]] = {}
    for left, right, score in comparisons:
        i, j = index[left], index[right]
        if i > j:
            i, j, score = j, i, 1 - score
        outcomes.setdefault((i, j), [0, 0, 0])[WIN_TIE_LOSS.index(score)] += 1
    pairs = [pair for pair in combinations(range(len(rows)), 2) if pair in outcomes]
    features = np.zeros((len(pairs), 3, len(rows) + 1))
    for p, (i, j) in enumerate(pairs):
        features[p, 0, i] = features[p, 2, j] = features[p, 1, -1] = 1
        features[p, 1, [i, j]] = 0.5
    return features, np.array([outcomes[pair] for pair in pairs], dtype=float)


def _maximise(features: Array, counts: Array, precision: float) -> tuple[Array, Array]:
    """Where log-likelihood and prior are greatest (R + 1,), and minus their second derivative there."""

    def objective(x: Array) -> float:
        logits = features @ x
        likelihood = counts * (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        return float(likelihood.sum() - precision * (x @ x) / 2)

    x = np.zeros(features.shape[-1])
    played = counts.sum(1)
    for _ in range(100):
        logits = features @ x
        chance = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        mean = np.einsum("po,por->pr", chance, features)
        gradient = np.einsum("po,por->r", counts - played[:, None] * chance, features) - precision * x
        spread = np.einsum("po,por,pos->rs", played[:, None] * chance, features, features)
        hessian = spread - np.einsum("p,pr,ps->rs", played, mean, mean) + precision * np.eye(len(x))
        step = np.linalg.solve(hessian, gradient)
        if np.abs(step).max() < 1e-10:
            break
        size, reached = 1.0, objective(x)
        while size > 1e-6 and objective(x + size * step) < reached - 1e-9:
            size /= 2
        x = x + size * step
    return x, hessian


def _groups(rows: list[str], comparisons: Sequence[Comparison]) -> NDArray[np.int64]:
    """The number of each row's group (R,): rows linked by comparisons, however indirectly."""
    group = {row: i for i, row in enumerate(rows)}
    for left, right in sorted({(left, right) for left, right, _ in comparisons}):
        keep, gone = sorted((group[left], group[right]))
        group = {row: keep if number == gone else number for row, number in group.items()}
    return np.unique([group[row] for row in rows], return_inverse=True)[1]
