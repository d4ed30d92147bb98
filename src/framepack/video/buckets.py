"""Sizes of one area in many shapes, by rule. Sizes are (height, width), in px."""

from __future__ import annotations

import math
import re

from framepack.errors import InputError

Size = tuple[int, int]

UNIT = 32
WIDEST = 2.4
"""Longest side by shortest: a little over cinema's 2.39."""


def bucket_set(area: int, unit: int = UNIT, widest: float = WIDEST) -> tuple[Size, ...]:
    """Every shape with sides of whole ``unit`` whose area comes as near to ``area`` from below as they allow.

    To each short side the longest other side that stays within ``area``, where it is no shorter, and no more
    than ``widest`` times as long. Wide shapes come first, the widest of all at the start, then the same
    turned. At the area of 480 x 832 and unit 32 they are the 14 sizes of the released "640" set.

    Raises:
        InputError: an area that holds no such shape.
    """
    if unit < 1 or area < unit * unit:
        raise InputError(f"an area of {area:,} px holds no side of {unit} px: give at least {unit * unit:,}")
    squares = area // (unit * unit)
    wide = [
        (short * unit, squares // short * unit)
        for short in range(1, math.isqrt(squares) + 1)
        if squares // short <= widest * short
    ]
    if not wide:
        raise InputError(f"an area of {area:,} px has no shape of {unit} px sides up to {widest}: change it")
    return (*wide, *((width, height) for height, width in wide if width != height))


def read_size(text: str, example: str) -> tuple[int, int]:
    """(height, width) of ``WIDTHxHEIGHT`` in pixels. Raises InputError: another form; ``example`` is told."""
    found = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", text.strip())
    if found is None:
        raise InputError(f"size '{text}' is not WIDTHxHEIGHT: give one such as {example}")
    return int(found[2]), int(found[1])
