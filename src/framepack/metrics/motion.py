"""Where a coloured shape is and which way it moves, from the pixels alone.

The shape is segmented by its colour in CIE Lab and followed by the centre of its pixels, so the
answer owes nothing to the model that made the frames, and a panning background does not disturb it.
Where the frame's edge cuts the shape, the side of it that lies inside is followed instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from framepack.errors import InputError, UnknownNameError
from framepack.metrics.colour import COLOURS, difference

NEAR = 22.0
"""Largest distance in Lab from the shape's colour."""
SMALLEST = 0.0015
"""Smallest share of the frame that counts as seen."""
REACH = 0.2
"""Pixels farther than this from the middle of the shape, in frame widths, are specks elsewhere."""
JUMP = 0.12
"""Longer steps in a frame, in frame widths, are a return on the other side or a mistake."""
WHOLE = 0.004
"""With a smaller share of the frame than this, a cut shape is too thin a sliver to be measured."""
STILL = 0.004
"""Slower than this, in frame widths a frame, is still; the world's slowest motion is 0.0117."""


@dataclass(frozen=True)
class Track:
    """A followed shape; lengths in frame widths, y points down, NaN where it is not seen.

    Attributes:
        positions: (N, 2) centre x, y of the visible part.
        visibility: (N,) share of the frame that the shape's fill covers.
        boxes: (N, 4) left, top, right, bottom of the visible part.
        cut: (N, 4) whether the frame's edge cuts it on that side.
    """

    positions: NDArray[np.float64]
    visibility: NDArray[np.float64]
    boxes: NDArray[np.float64]
    cut: NDArray[np.bool_]

    @property
    def seen(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.positions[:, 0])

    def steps(self) -> NDArray[np.float64]:
        """(N - 1, 2) widths moved from each frame to the next; NaN where that cannot be told."""
        out = np.full((max(0, len(self.positions) - 1), 2), np.nan)
        for axis in (0, 1):
            low, high = axis, axis + 2
            low_cut, high_cut = (self.cut[:-1, side] | self.cut[1:, side] for side in (low, high))
            centre = np.diff(self.positions[:, axis])
            inner = np.where(low_cut, np.diff(self.boxes[:, high]), np.diff(self.boxes[:, low]))
            step = np.where(low_cut | high_cut, inner, centre)
            step[low_cut & high_cut] = np.nan
            step[np.abs(step) > JUMP] = np.nan
            out[:, axis] = step
        sliver = self.cut.any(axis=1) & (self.visibility < WHOLE)
        out[sliver[:-1] | sliver[1:]] = np.nan
        # A return on the other side shows on one axis; the whole step is then unknown.
        out[np.isnan(out).any(axis=1)] = np.nan
        return out


def track(frames: NDArray[np.uint8], colour: str | Sequence[int]) -> Track:
    """Follow the shape of a colour (a word of the lexicon, or RGB in 0..255) through (N, H, W, 3)."""
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise InputError(
            f"frames of shape {frames.shape}: they must be (frames, height, width, 3); stack them so"
        )
    count, height, width, _ = frames.shape
    positions, boxes = np.full((count, 2), np.nan), np.full((count, 4), np.nan)
    visibility, cut = np.zeros(count), np.zeros((count, 4), bool)
    for n, frame in enumerate(frames):
        x, y = fill(frame, colour)
        visibility[n] = len(x) / (height * width)
        if len(x) == 0:
            continue
        positions[n] = (x.mean() + 0.5) / width, (y.mean() + 0.5) / width
        # The sides at which a few pixels lie, so that one speck does not move them.
        few = max(1, len(x) // 200)
        xs, ys = np.sort(x), np.sort(y)
        boxes[n] = np.array([xs[few - 1], ys[few - 1], xs[-few] + 1, ys[-few] + 1]) / width
        cut[n] = xs[0] < 1, ys[0] < 1, xs[-1] > width - 2, ys[-1] > height - 2
    return Track(positions, visibility, boxes, cut)


def fill(frame: NDArray[np.uint8], colour: str | Sequence[int]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """x and y of the pixels of a shape of a colour in (H, W, 3); none where there is no such shape."""
    if isinstance(colour, str):
        if colour not in COLOURS:
            raise UnknownNameError("colour", colour, tuple(COLOURS))
        colour = COLOURS[colour]
    height, width, _ = frame.shape
    near = _near(tuple(int(v) for v in colour))[tuple(np.moveaxis(frame >> 2, -1, 0))]
    y, x = np.nonzero(near)
    if len(x) >= SMALLEST * height * width:
        reach = REACH * width
        kept = (np.abs(x - np.median(x)) <= reach) & (np.abs(y - np.median(y)) <= reach)
        x, y = x[kept], y[kept]
    if len(x) < SMALLEST * height * width:
        x, y = x[:0], y[:0]
    return x, y


@lru_cache(maxsize=32)
def _near(colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Whether a colour of 6 bits a channel is near `colour`, as a table (64, 64, 64)."""
    levels = np.arange(64) * 4 + 2
    return difference(np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1), colour) < NEAR


def direction(frames: NDArray[np.uint8], colour: str | Sequence[int]) -> str | None:
    """ "left", "right", "up", "down" or "still"; None when the shape is not seen in two frames running."""
    return direction_of(track(frames, colour))


def direction_of(followed: Track) -> str | None:
    """The direction of a track: its mean step, along the axis on which it is larger."""
    steps = followed.steps()
    steps = steps[~np.isnan(steps[:, 0])]
    if not len(steps):
        return None
    x, y = steps.mean(axis=0)
    if max(abs(x), abs(y)) < STILL:
        return "still"
    if abs(x) >= abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"
