"""A contact sheet of clips, as training will see them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from framepack.data.clips import Clip
from framepack.errors import InputError
from framepack.video.clips import read_frames
from framepack.video.sheet import PAPER, contact_sheet, spread

CLIPS, TILE, NAME = 16, 160, 14
"""Clips on a sheet, side of a picture in px, characters of a name."""


def sheet_of_clips(clips: Sequence[Clip], title: str = "") -> Image.Image:
    """The first, middle and last frame of some of ``clips``, spread over all; damaged ones are left out.

    Raises:
        InputError: no clip can be decoded.
    """
    tiles: list[np.ndarray] = []
    labels: list[str] = []
    for index in spread(len(clips), CLIPS):
        clip = clips[index]
        wanted = {0, clip.frames // 2, clip.frames - 1}
        try:
            shown = [
                _tile(frame)
                for number, frame in enumerate(islice(read_frames(clip), clip.frames))
                if number in wanted
            ]
        except InputError:
            continue
        stem = PurePosixPath(clip.video.name).stem
        tiles += shown
        height, width = clip.bucket
        labels += [
            stem if len(stem) <= NAME else stem[: NAME - 1] + "…",
            f"{float(clip.start):.1f} s + {clip.seconds:.1f} s",
            f"{height} x {width}",
        ]
    if not tiles:
        raise InputError(f"none of {len(clips)} clips can be decoded: look at what was rejected")
    return contact_sheet(tiles, 6, labels, title=title, tile_width=TILE)


def _tile(frame: np.ndarray) -> np.ndarray:
    """The frame in the middle of a square."""
    image = Image.fromarray(frame)
    image.thumbnail((TILE, TILE))
    square = Image.new("RGB", (TILE, TILE), PAPER)
    square.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    return np.asarray(square)
