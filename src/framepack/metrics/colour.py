"""Colours as people see them apart: CIE Lab, and the colours of the bundled world by name."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (224, 46, 50),
    "orange": (250, 138, 24),
    "yellow": (253, 215, 44),
    "green": (38, 178, 88),
    "blue": (38, 92, 228),
    "purple": (140, 58, 198),
    "pink": (250, 118, 184),
    "white": (250, 250, 250),
}
"""sRGB of the colour words, 0..255."""

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_LINEAR = np.array(
    [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.arange(256) / 255]
)


def lab(rgb: ArrayLike) -> NDArray[np.float32]:
    """sRGB (..., 3) in 0..255 to CIE Lab (..., 3), D65 white (CIE 15:2004)."""
    values = np.clip(np.rint(np.asarray(rgb)), 0, 255).astype(np.uint8)
    xyz = (_LINEAR[values] @ _TO_XYZ.T) / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    ).astype(np.float32)


def difference(a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
    """Euclidean distance in Lab (CIE 1976); about 2 is just visible, 30 is another colour."""
    return np.sqrt(np.sum((lab(a) - lab(b)) ** 2, axis=-1))
