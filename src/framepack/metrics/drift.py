"""How far a video's end has moved from its start, by any score of its frames (FramePack, section 5.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from framepack.errors import InputError

SHARE = 0.15
"""Of the frames, at either end: the paper's."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Means of a score over the first and the last frames, (K,) each; K is 1 for a plain score."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]

    @property
    def absolute(self) -> float:
        """The start-end contrast |start - end|, in units of the score; Euclidean where K is above 1."""
        return float(np.linalg.norm(self.end - self.start))

    @property
    def relative(self) -> float:
        """``absolute`` in % of |start|; infinite where only the start is 0."""
        size = float(np.linalg.norm(self.start))
        if size == 0:
            return 0.0 if self.absolute == 0 else math.inf
        return 100 * self.absolute / size

    @property
    def change(self) -> float:
        """end - start of a plain score, with its sign: which way it drifted."""
        assert self.start.shape == (1,), "only a plain score has a sign"
        return float(self.end[0] - self.start[0])


def end_count(scores: int, share: float = SHARE) -> int:
    """How many of 2 or more scores make either end: ``share`` of them, rounded half up, at least one."""
    count = max(1, math.floor(share * scores + 0.5))
    return min(count, scores // 2)  # rounding half up must not let the two ends overlap


def drift(scores: ArrayLike, share: float = SHARE) -> Drift:
    """Drift of a score M of frames: |M(first 15 %) - M(last 15 %)|, each side the mean over its frames.

    The number of frames at either end is that of ``end_count``.

    Args:
        scores: (N,), or (N, K) for scores with several components, such as a colour. Frames in which there
            is nothing to score are not a number, and left out.

    Raises:
        InputError: fewer than two frames, a share outside (0, 0.5], an infinite score, or an end without any.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim not in (1, 2) or len(values) < 2:
        raise InputError(f"scores of shape {values.shape}: drift needs (frames,) with two frames or more")
    if not 0 < share <= 0.5:
        raise InputError(f"a share of {share:g} at either end: it must be above 0 and at most 0.5")
    columns = values.reshape(len(values), -1)
    count = end_count(len(values), share)
    ends = [end[~np.isnan(end).any(axis=1)] for end in (columns[:count], columns[-count:])]
    if np.isinf(values).any() or not all(len(end) for end in ends):
        raise InputError("without a finite score at both ends there is no drift: leave that video out")
    return Drift(start=ends[0].mean(axis=0), end=ends[1].mean(axis=0))


def drift_of(scores: ArrayLike) -> float:
    """The absolute drift of plain scores (N,); not a number where there is none."""
    try:
        return drift(scores).absolute
    except InputError:
        return math.nan
