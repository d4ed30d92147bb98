"""A suite's rows beside the paper's figures for the same methods: is their order the same?

The paper measures other models with other metrics, so that numbers cannot be compared; orders can.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from framepack.evaluation.analysis import Measure, Measured, MetricInfo

DRIFT = " drift"
NEAR: Mapping[str, tuple[str, ...]] = {
    "clarity": ("sharpness", "niqe"),
    "motion": ("warping-error",),
    "dynamic": ("flow-speed",),
    "semantic": ("right-colour", "right-motion"),
    "anatomy": ("right-shape",),
    "identity": ("feature-spread",),
}
"""Metrics of a like subject, looked at where the paper's own metric has no scores, and told to be others."""


@dataclass(frozen=True)
class Pair:
    """Two rows, by number: the paper has ``first`` before ``second``, here it is behind."""

    first: int
    second: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One of the paper's figures and what stands for it here.

    Attributes:
        figure: the paper's name. measure: what is measured here. near: whether it is only of a like subject.
        rows: that have both, by number. pairs: of them, without those that the paper has equal.
        tau: Kendall's tau-b of the two orders, better rows first; NaN for fewer than three rows. p: of it.
        kept: pairs in the same order here whose difference here is more than chance.
        turned: pairs in the other order here. sure: those of them whose difference here is more than chance.
    """

    figure: str
    measure: Measure
    near: bool
    rows: tuple[int, ...]
    pairs: int
    tau: float
    p: float
    kept: int
    turned: tuple[Pair, ...]
    sure: tuple[Pair, ...]


def figures(found: Measured) -> list[str]:
    """The paper's names, in the order in which the rows have them."""
    return list(dict.fromkeys(name for row in found.rows for name in row.paper))


def counterparts(found: Measured, figure: str) -> list[tuple[Measure, bool]]:
    """What stands for one of the paper's figures, a drift for a drift; else, and True, what is nearest."""
    subject, kind = (figure[: -len(DRIFT)], "drift") if figure.endswith(DRIFT) else (figure, "value")
    standing = [m for m in found.of(kind) if _stands_for(found.metrics[m.metric], subject)]
    near = [] if standing else [m for m in found.of(kind) if m.metric in NEAR.get(subject, ())]
    return [(m, False) for m in standing] + [(m, True) for m in near]


def agreements(found: Measured) -> Iterator[Agreement]:
    """For each figure of the paper and each metric that stands for it, where two finished rows have both."""
    for figure in figures(found):
        better = -1 if figure.endswith(DRIFT) else 1  # all of the paper's scores are better when higher
        for measure, near in counterparts(found, figure):
            rows = [row for row in measure.compared() if figure in found.rows[row].paper]
            common = ~np.isnan(measure.samples[rows]).any(axis=0)
            if len(rows) < 2 or not common.any():
                continue
            theirs = [better * found.rows[row].paper[figure] for row in rows]
            ours = (measure.sign or 1) * measure.samples[rows][:, common].mean(axis=1)
            ordered = [(i, j) for i, j in combinations(range(len(rows)), 2) if theirs[i] != theirs[j]]
            ordered = [(i, j) if theirs[i] > theirs[j] else (j, i) for i, j in ordered]
            turned = [Pair(rows[i], rows[j]) for i, j in ordered if ours[i] < ours[j]]
            kept = [(i, j) for i, j in ordered if ours[i] > ours[j] and measure.differ(rows[i], rows[j])]
            tau, p = kendall(theirs, ours)
            yield Agreement(
                figure=figure,
                measure=measure,
                near=near,
                rows=tuple(rows),
                pairs=len(ordered),
                tau=tau,
                p=p,
                kept=len(kept),
                turned=tuple(turned),
                sure=tuple(pair for pair in turned if measure.differ(pair.first, pair.second)),
            )


def kendall(
    first: ArrayLike, second: ArrayLike, *, shuffles: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Kendall's tau-b of two lists of N numbers (Kendall 1945), and how often chance alone is as far from 0.

    NaN for fewer than three numbers, or where one list is all the same. p is two-sided, over shuffles of one
    of the lists.
    """
    x, y = np.asarray(first, float), np.asarray(second, float)
    a, b = (np.sign(values[:, None] - values[None]) for values in (x, y))
    size = np.sqrt((a**2).sum() * (b**2).sum())
    if len(x) < 3 or size == 0:
        return float("nan"), float("nan")
    found = (a * b).sum()
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(len(x)), (shuffles, 1)), axis=1)
    orders[0] = np.arange(len(x))  # what was found is one of the orders
    chance = np.zeros(shuffles)
    for i, j in combinations(range(len(x)), 2):
        chance += 2 * a[i, j] * b[orders[:, i], orders[:, j]]
    return float(found / size), float((np.abs(chance) >= abs(found) - 1e-9).mean())


def _stands_for(info: MetricInfo, subject: str) -> bool:
    """Whether ``stands_for`` begins with the subject: "motion smoothness" stands for "motion"."""
    told, wanted = (re.findall(r"\w+", text.lower()) for text in (info.stands_for or "", subject))
    return bool(wanted) and told[: len(wanted)] == wanted
