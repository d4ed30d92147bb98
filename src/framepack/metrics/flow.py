"""How much moves, and how well motion alone explains the next frame, by optical flow.

The flow is OpenCV's DIS (Kroeger and others 2016, "Fast optical flow using dense inverse search"), preset
medium, on luma: no network. Frames without texture tell no motion, and it follows no step much longer than
the things that move are wide.

Legend: N frames, H W pixels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from framepack.errors import InputError

SMALLEST = 32
"""Shortest side in pixels: patches are 8 px, on a pyramid."""


def installed() -> bool:
    """Whether OpenCV is there."""
    return importlib.util.find_spec("cv2") is not None


def flow_speed(frames: NDArray[np.uint8], fps: float) -> NDArray[np.float64]:
    """Mean length of the flow between each two frames, in % of the frame's width a second.

    Args:
        frames: uint8 (N, H, W, 3), each side `SMALLEST` or more.

    Returns:
        (N - 1,).

    Raises:
        InputError: smaller frames, or fewer than two.
    """
    lengths = [np.hypot(flow[..., 0], flow[..., 1]).mean() for flow in _flows(frames)]
    return np.array(lengths, dtype=np.float64) * 100 * fps / frames.shape[2]


def warping_error(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What motion leaves unexplained: mean absolute difference of a frame and the one before, moved there.

    In levels of 0..255 of sRGB (as Lai and others 2018, "Learning blind video temporal consistency", there
    squared and with a network's flow). Pixels that come from outside the frame do not count; what a moving
    thing uncovers does. Flicker, jumps and things that change raise it; a video without motion has none.
    Arguments, shape of the result and errors as in ``flow_speed``.
    """
    import cv2

    height, width = frames.shape[1:3]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    errors = []
    for before, after, flow in zip(frames[:-1], frames[1:], _flows(frames), strict=True):
        from_x, from_y = x + flow[..., 0], y + flow[..., 1]
        moved = cv2.remap(before, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = (from_x >= 0) & (from_x <= width - 1) & (from_y >= 0) & (from_y <= height - 1)
        difference = cv2.absdiff(moved, after)[inside]
        errors.append(difference.mean() if len(difference) else np.nan)
    return np.array(errors, dtype=np.float64)


def _flows(frames: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    """(H, W, 2) for each frame but the first: x, y in pixels to where each of its pixels was before."""
    import cv2

    count, height, width = frames.shape[:3]
    if count < 2 or min(height, width) < SMALLEST:
        raise InputError(
            f"{count} frames of {width}x{height}: optical flow needs 2 or more, of {SMALLEST} px a side"
        )
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    greys = (cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames)
    before = next(greys)
    for after in greys:
        yield dis.calc(after, before, None)
        before = after
