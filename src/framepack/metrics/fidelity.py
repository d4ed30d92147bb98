"""How near frames come to the very frames that they should be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from framepack.errors import InputError

HIGHEST = 100.0
"""dB of frames that are equal, so that a mean with them is a number."""


def psnr(frames: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each frame in dB, 10 log10(255^2 / mean squared error); higher is nearer.

    The error is the mean over pixels and the channels of sRGB; equal frames have `HIGHEST`. Needs nothing.

    Args:
        frames, wanted: uint8 (N, H, W, 3).

    Returns:
        (N,).

    Raises:
        InputError: shapes or types that do not go together.
    """
    frames, wanted = check_pair(frames, wanted)
    errors = [np.square(a.astype(np.float64) - b).mean() for a, b in zip(frames, wanted, strict=True)]
    return np.minimum(10 * np.log10(255**2 / np.maximum(errors, 1e-12)), HIGHEST)


def check_pair(
    frames: NDArray[np.uint8], wanted: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Both, if they are frames of one number and size. Raises InputError."""
    frames, wanted = np.asarray(frames), np.asarray(wanted)
    for given in (frames, wanted):
        if given.shape != frames.shape or given.ndim != 4 or given.shape[-1] != 3 or given.dtype != np.uint8:
            raise InputError(
                f"frames of shape {frames.shape} ({frames.dtype}) and {wanted.shape} ({wanted.dtype}): give "
                "uint8 (frames, height, width, 3) twice"
            )
    return frames, wanted
