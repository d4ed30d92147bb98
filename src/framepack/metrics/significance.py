"""Which of many differences are more than chance, when all of them are looked at together."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST = 5
"""Samples; of fewer nothing is claimed."""
CHUNK = 512
"""Columns at once, for the memory."""


def family_p(differences: ArrayLike, *, flips: int = 10_000, seed: int = 0) -> NDArray[np.float64]:
    """p of each column's mean being 0, corrected for the number of columns: (K,), two-sided.

    Where two things do not differ, each of their paired differences could as well have the other sign: a
    sign-flip test of Student's t (Fisher 1935). A column's p is the share of flips in which the largest |t|
    of *any* column reaches its own (Westfall and Young 1993, single step), so that below 0.05 the chance of
    even one false claim among all columns is about 5 %. Signs are flipped in the same samples of all columns,
    which keeps what the columns have in common.

    Args:
        differences: (N, K), paired, each row of one sample; NaN where it is missing. A column of fewer than
            five has p = 1.
        flips: as many at random, or all 2^N where those are fewer.
    """
    values = np.asarray(differences, dtype=np.float64)
    assert values.ndim == 2, values.shape
    signs = _signs(len(values), flips, seed)
    own, largest = np.zeros(values.shape[1]), np.zeros(len(signs))
    for start in range(0, values.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        found = _squared_t(signs, values[:, part])
        own[part] = found[0]  # the first flip changes nothing
        largest = np.maximum(largest, found.max(axis=1, initial=0))
    reached = np.sort(largest)
    above = len(reached) - np.searchsorted(reached, own * (1 - 1e-9), side="left")
    return np.where(own > 0, above / len(reached), 1.0)


def _signs(count: int, flips: int, seed: int) -> NDArray[np.float64]:
    """(R, N) of 1 and -1, the first row all 1."""
    if count < 60 and 2**count <= flips:
        minus = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    else:
        minus = np.random.default_rng(seed).integers(2, size=(flips, count))
        minus[0] = 0
    return np.where(minus, -1.0, 1.0)


def _squared_t(signs: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, K): t of each flip and column, squared; infinite if all samples are equal, 0 if too few."""
    count = (~np.isnan(values)).sum(axis=0)
    kept = np.nan_to_num(values)
    squares = (kept**2).sum(axis=0)  # no flip changes them
    enough = (count >= FEWEST) & (squares > 0)
    share = (signs @ kept) ** 2 / np.where(enough, count * squares, np.inf)
    with np.errstate(divide="ignore"):
        return (count - 1) * share / np.maximum(1 - share, 0).round(12)
