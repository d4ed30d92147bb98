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


def drift(scores: ArrayLike, share: float = SHARE) -> Drift:
    """Drift of a score M of frames: |M(first 15 %) - M(last 15 %)|, each side the mean over its frames.

    The number of frames at either end is ``share`` of all, rounded half up, at least one.

    Args:
        scores: (N,), or (N, K) for scores with several components, such as a colour.

    Raises:
        InputError: fewer than two frames, a share outside (0, 0.5], or a score that is no number.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim not in (1, 2) or len(values) < 2:
        raise InputError(f"scores of shape {values.shape}: drift needs (frames,) with two frames or more")
    if not 0 < share <= 0.5:
        raise InputError(f"a share of {share:g} at either end: it must be above 0 and at most 0.5")
    if not np.isfinite(values).all():
        raise InputError("a score that is not a finite number has no drift: leave that video out")
    count = max(1, math.floor(share * len(values) + 0.5))
    count = min(count, len(values) // 2)  # rounding half up must not let the two ends overlap
    columns = values.reshape(len(values), -1)
    return Drift(start=columns[:count].mean(axis=0), end=columns[-count:].mean(axis=0))
