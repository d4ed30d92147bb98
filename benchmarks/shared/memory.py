"""What a batch takes of memory, and the largest one that fits."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import torch

MIB, GIB = 2**20, 2**30


def free_cache(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def largest_batch(peak: Callable[[int], float], memory: float) -> int:
    """The largest batch whose peak is within ``memory``; 0 where one sample's is not.

    Peaks grow with the batch, nearly along a line, so a line through the last two foretells the next guess.
    The answer itself and the batch after it have been tried.

    Args:
        peak: bytes of a batch; inf for one that ran out of memory.
    """
    fits, too_large, guess = 0, 0, 1
    known: dict[int, float] = {}
    while too_large != fits + 1:
        known[guess] = peak(guess)
        if known[guess] <= memory:
            fits = guess
        else:
            too_large = guess
        guess = max(fits + 1, _on_the_line(known, memory))
        if too_large and guess >= too_large:
            # Nothing tells how far above an exhausted memory was.
            out = math.isinf(known[too_large])
            guess = (fits + too_large) // 2 if out else too_large - 1
    return fits


def _on_the_line(known: dict[int, float], memory: float) -> int:
    points = sorted((batch, size) for batch, size in known.items() if math.isfinite(size))[-2:]
    if len(points) < 2 or points[1][1] <= points[0][1]:
        return 2 * max(known)
    slope = (points[1][1] - points[0][1]) / (points[1][0] - points[0][0])
    return math.floor(points[1][0] + (memory - points[1][1]) / slope)
