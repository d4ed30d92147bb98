"""How sure a mean over few videos is: percentile bootstrap intervals (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from framepack.errors import InputError

Statistic = Callable[..., NDArray[np.float64]]
"""Samples of each group (R, N) -> the statistic of each of the R resamples (R,)."""


@dataclass(frozen=True)
class Interval:
    """A statistic of the samples themselves, and the interval that resampling gives it."""

    value: float
    low: float
    high: float


def _mean(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    return samples.mean(axis=1)


def bootstrap(
    *groups: ArrayLike,
    statistic: Statistic = _mean,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A statistic with its interval; the same seed gives the same interval.

    Args:
        groups: samples (N,) each, resampled on their own; give paired samples as one group of differences.
        statistic: takes as many arrays (R, N) as there are groups. The mean by default.

    Raises:
        InputError: a group without samples, or a level outside (0, 1).
    """
    samples = [np.asarray(group, dtype=np.float64) for group in groups]
    if not samples or any(group.ndim != 1 or len(group) == 0 for group in samples):
        shapes = ", ".join(str(group.shape) for group in samples)
        raise InputError(f"samples of shape {shapes}: give groups of (samples,), none of them empty")
    if not 0 < level < 1:
        raise InputError(f"a level of {level:g}: it must lie between 0 and 1, such as 0.95")
    rng = np.random.default_rng(seed)
    drawn = [group[rng.integers(len(group), size=(resamples, len(group)))] for group in samples]
    found = statistic(*drawn)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(*(group[None] for group in samples))[0]), float(low), float(high))


def bootstrap_means(
    samples: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Means of many columns at once, each with its interval: value, low and high, (3, K).

    Args:
        samples: (N, K); NaN where one is missing. Columns that miss the same ones share their resamples,
            which makes thousands of them quick. A column without any sample comes back as NaN.
    """
    values = np.asarray(samples, dtype=np.float64)
    assert values.ndim == 2 and 0 < level < 1, (values.shape, level)
    found = np.full((3, values.shape[1]), np.nan)
    there, group = np.unique(~np.isnan(values), axis=1, return_inverse=True)
    for n, rows in enumerate(there.T):
        columns, count = np.ravel(group) == n, int(rows.sum())
        if not count:
            continue
        kept = values[np.ix_(rows, columns)]
        rng = np.random.default_rng(seed)
        times = rng.multinomial(count, np.full(count, 1 / count), size=resamples)  # that each sample is drawn
        drawn = (times / count) @ kept
        found[0, columns] = kept.mean(axis=0)
        found[1:, columns] = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found
