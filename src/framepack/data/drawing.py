"""Flat vector drawing: signed distances to shapes, palettes of sky and ground, hill silhouettes.

Lengths are in widths of the frame and y points down, so that a drawing is the same at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Colours are sRGB 0..255. sky: top, bottom; light: multiplies the ground; haze: share of the sky's
# bottom colour in the far hills; disc: sun or moon and its strength.
SKIES: dict[str, dict[str, tuple[float, ...]]] = {
    "day": {
        "top": (86, 168, 240),
        "bottom": (198, 232, 252),
        "light": (1, 1, 1),
        "sun": (255, 244, 190),
        "disc": (1, 0),
    },
    "dawn": {
        "top": (142, 152, 222),
        "bottom": (255, 214, 206),
        "light": (0.94, 0.84, 0.92),
        "sun": (255, 240, 214),
        "disc": (1, 0),
    },
    "sunset": {
        "top": (120, 72, 138),
        "bottom": (255, 164, 98),
        "light": (0.82, 0.6, 0.62),
        "sun": (255, 226, 150),
        "disc": (1, 0),
    },
    "night": {
        "top": (14, 18, 52),
        "bottom": (54, 66, 122),
        "light": (0.3, 0.36, 0.56),
        "sun": (250, 226, 156),
        "disc": (0, 1),
    },
    "cloudy": {
        "top": (142, 152, 164),
        "bottom": (206, 212, 218),
        "light": (0.8, 0.82, 0.86),
        "sun": (226, 230, 234),
        "disc": (0, 0),
    },
}
GROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # near, far
    "grass": ((92, 164, 72), (134, 190, 92)),
    "desert": ((214, 168, 104), (232, 198, 140)),
    "snow": ((228, 238, 250), (170, 194, 226)),
    "sea": ((24, 92, 140), (48, 138, 176)),
    "lavender": ((124, 96, 168), (156, 134, 194)),
    "city": ((64, 72, 92), (112, 124, 148)),
}
DARK, LIGHT = (24, 28, 48), (252, 252, 255)
PALETTE = ("top", "bottom", "far", "near", "sun", "outline")


def palette(sky: str, ground: str, colour: str) -> tuple[Array, Array]:
    """The scene's colours (6, 3), rows named by `PALETTE`, and the strengths (2,) of sun and moon."""
    look = SKIES[sky]
    light = np.array(look["light"])
    near, far = (np.array(tone) * light for tone in GROUNDS[ground])
    haze = 0.15 if ground == "sea" else 0.3
    far = far * (1 - haze) + np.array(look["bottom"]) * haze
    outline = LIGHT if sky == "night" and colour != "white" else DARK
    rows = [look["top"], look["bottom"], far, near, look["sun"], outline]
    return np.array(rows, np.float32), np.array(look["disc"], np.float32)


# Signed distances: negative inside, in the units of `x`, `y` (relative to the centre), size `r`.


def _polygon(
    points: Sequence[tuple[float, float]], rounding: float
) -> Callable[[Array, Array, float], Array]:
    """Distance to a polygon with corners given in units of r, its corners rounded by `rounding` r."""

    def distance(x: Array, y: Array, r: float) -> Array:
        corners = np.array(points, np.float32) * r
        nearest, sign = np.full(x.shape, np.inf, np.float32), np.ones(x.shape, bool)
        for a, b in zip(corners, np.roll(corners, 1, axis=0), strict=True):
            ex, ey = b - a
            wx, wy = x - a[0], y - a[1]
            along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
            crosses = (y >= a[1]) != (y >= b[1])
            if ey != 0:
                sign ^= crosses & (wx < wy * (ex / ey))
        return np.where(sign, 1, -1).astype(np.float32) * np.sqrt(nearest) - rounding * r

    return distance


def _ball(x: Array, y: Array, r: float) -> Array:
    return np.hypot(x, y) - r


def _heart(x: Array, y: Array, r: float) -> Array:
    """Two circle arcs and a corner (the exact distance of I. Quilez's sdHeart), rounded a little."""
    scale = np.float32(1.56 * r)
    px, py = np.abs(x) / scale, 0.56 - y / scale
    lobe = np.hypot(px - 0.25, py - 0.75) - np.sqrt(2.0) / 4
    half = 0.5 * np.maximum(px + py, 0)
    flank = np.sqrt(np.minimum(px**2 + (py - 1) ** 2, (px - half) ** 2 + (py - half) ** 2)) * np.sign(px - py)
    return (np.where(px + py > 1, lobe, flank) * scale - 0.06 * r).astype(np.float32)


def _ring_of_points(count: int, radii: Sequence[float], turn: float = 0.0, drop: float = 0.0):
    angles = [2 * np.pi * k / count - np.pi / 2 + turn for k in range(count)]
    return [
        (radii[k % len(radii)] * float(np.cos(a)), radii[k % len(radii)] * float(np.sin(a)) + drop)
        for k, a in enumerate(angles)
    ]


_ARM = 0.3
_CROSS = [(-_ARM, -0.88), (_ARM, -0.88), (_ARM, -_ARM), (0.88, -_ARM), (0.88, _ARM), (_ARM, _ARM)]
SHAPES: dict[str, Callable[[Array, Array, float], Array]] = {
    "ball": _ball,
    "box": _polygon([(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)], 0.1),
    "triangle": _polygon([(0, -0.86), (0.92, 0.74), (-0.92, 0.74)], 0.1),
    "star": _polygon(_ring_of_points(10, (1.0, 0.5), drop=0.05), 0.08),
    "heart": _heart,
    "diamond": _polygon([(0, -0.94), (0.72, 0), (0, 0.94), (-0.72, 0)], 0.06),
    "cross": _polygon(_CROSS + [(-px, -py) for px, py in _CROSS], 0.08),
}
OUTLINE = 0.16  # thickness of the outline, in units of r

# Hill heights: function of x with period 1, of the three phases of a scene; mean about 0, in widths.


def _waves(amplitude: float, orders: tuple[int, int, int]) -> Callable[[Array, Array], Array]:
    def height(x: Array, phase: Array) -> Array:
        waves = [
            np.sin(2 * np.pi * (k * x + p)) / (1 + n)
            for n, (k, p) in enumerate(zip(orders, phase, strict=True))
        ]
        return amplitude * (waves[0] + waves[1] + waves[2])

    return height


def _peaks(amplitude: float, orders: tuple[int, int, int]) -> Callable[[Array, Array], Array]:
    def height(x: Array, phase: Array) -> Array:
        total = np.zeros_like(x)
        for n, (k, p) in enumerate(zip(orders, phase, strict=True)):
            total += (4 * np.abs((k * x + p) % 1 - 0.5) - 1) / (1 + n)
        return amplitude * total

    return height


def _dunes(amplitude: float) -> Callable[[Array, Array], Array]:
    def height(x: Array, phase: Array) -> Array:
        one = 1 - 2 * np.abs(np.sin(np.pi * (x + phase[0])))
        return amplitude * (one + 0.6 * (1 - 2 * np.abs(np.sin(np.pi * (2 * x + phase[1])))))

    return height


def _towers(amplitude: float, count: int) -> Callable[[Array, Array], Array]:
    def height(x: Array, phase: Array) -> Array:
        # A fixed pseudo-random row of roofs, chosen by the phase.
        index = np.floor((x + phase[0]) % 1 * count)
        level = np.abs(np.sin((index + 1) * (12.9898 + 40 * phase[1])) * 43.7585) % 1
        return amplitude * (2 * level - 1)

    return height


# ground: (far height, far base, near height, near base); bases are heights above the frame's bottom,
# in units of the frame's height.
HILLS: dict[str, tuple[Callable[[Array, Array], Array], float, Callable[[Array, Array], Array], float]] = {
    "grass": (_waves(0.045, (1, 2, 3)), 0.40, _waves(0.03, (1, 2, 3)), 0.22),
    "desert": (_dunes(0.05), 0.36, _dunes(0.04), 0.2),
    "snow": (_peaks(0.085, (2, 3, 5)), 0.42, _waves(0.025, (1, 2, 3)), 0.2),
    "sea": (_waves(0.0, (1, 2, 3)), 0.36, _waves(0.012, (4, 3, 2)), 0.2),
    "lavender": (_waves(0.05, (1, 3, 2)), 0.38, _waves(0.02, (1, 2, 3)), 0.24),
    "city": (_towers(0.1, 11), 0.40, _towers(0.06, 7), 0.2),
}


def cover(height: Array, y: Array, width: int) -> Array:
    """Share of each pixel (h, w) that lies under a silhouette.

    Args:
        height: y of the silhouette, (samples, w): several samples of x in each pixel.
        y: y of the pixel rows, (h,).
        width: pixels in one unit of length.
    """
    share = np.clip((y[None, :, None] - height[:, None, :]) * np.float32(width) + 0.5, 0, 1)
    return share.mean(axis=0)
