"""How sharp and how colourful a frame is, one number for each frame of a video.

No model and no reference: what these say is only worth comparing between frames of like content.

Legend: N frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from framepack.errors import InputError
from framepack.metrics.colour import lab

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G, B in luma (ITU-R BT.601), as image libraries have them."""

Video = NDArray[np.uint8]
Scores = NDArray[np.float64]


def luma(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """RGB (H, W, 3) in 0..255 to luma (H, W) in 0..255."""
    return frame.astype(np.float64) @ LUMA


def laplacian_variance(frames: Video) -> Scores:
    """Sharpness: the variance of the Laplacian of luma.

    The kernel is [0 1 0; 1 -4 1; 0 1 0], without the outermost pixels (Pech-Pacheco and others 2000,
    "Diatom autofocusing in brightfield microscopy"; LAPV in Pertuz and others 2013, "Analysis of focus
    measure operators for shape-from-focus").

    Args:
        frames: uint8 (N, H, W, 3).

    Raises:
        InputError: another shape or type, or frames below 3 x 3 pixels.
    """
    return _each(frames, _laplacian_variance)


def gradient_energy(frames: Video) -> Scores:
    """Sharpness: the mean squared slope of luma, in levels a pixel.

    Slopes are Sobel's, divided by 8 so that a ramp of one level a pixel has energy 1, without the
    outermost pixels (Tenenbaum 1970; TENG in Pertuz and others 2013). Arguments and errors as in
    ``laplacian_variance``.
    """
    return _each(frames, _gradient_energy)


def colourfulness(frames: Video) -> Scores:
    """Colourfulness M(3) of Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images".

    With rg = R - G and yb = (R + G) / 2 - B: sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2).
    0 is grey, 33 moderately, 82 highly, 109 extremely colourful (their table 2). Arguments and errors
    as in ``laplacian_variance``.
    """
    return _each(frames, _colourfulness)


def mean_lab(frames: Video) -> Scores:
    """Mean colour (N, 3) in CIE Lab; a distance of about 2 is just visible.

    Arguments and errors as in ``laplacian_variance``.
    """
    return _each(frames, lambda frame: lab(frame).reshape(-1, 3).mean(axis=0, dtype=np.float64))


QUALITIES: dict[str, Callable[[Video], Scores]] = {
    "laplacian-variance": laplacian_variance,
    "gradient-energy": gradient_energy,
    "colourfulness": colourfulness,
    "mean-lab": mean_lab,
}


def _each(frames: Video, score: Callable[[NDArray[np.uint8]], object]) -> Scores:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise InputError(
            f"frames of shape {frames.shape} and type {frames.dtype}: give uint8 (frames, height, width, 3)"
        )
    if len(frames) == 0 or min(frames.shape[1:3]) < 3:
        raise InputError(f"frames of shape {frames.shape}: give at least one, of 3 x 3 pixels or more")
    return np.array([score(frame) for frame in frames], dtype=np.float64)


def _laplacian_variance(frame: NDArray[np.uint8]) -> float:
    y = luma(frame)
    around = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:]
    return float((around - 4 * y[1:-1, 1:-1]).var())


def _gradient_energy(frame: NDArray[np.uint8]) -> float:
    y = luma(frame)
    rows, columns = y[:, 2:] - y[:, :-2], y[2:] - y[:-2]
    gx = (rows[:-2] + 2 * rows[1:-1] + rows[2:]) / 8
    gy = (columns[:, :-2] + 2 * columns[:, 1:-1] + columns[:, 2:]) / 8
    return float((gx**2 + gy**2).mean())


def _colourfulness(frame: NDArray[np.uint8]) -> float:
    r, g, b = np.moveaxis(frame.astype(np.float64), -1, 0)
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
