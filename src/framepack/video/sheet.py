"""Contact sheets: frames of a video side by side, each with its time under it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER = (250, 250, 248)
INK = (40, 42, 48)
FAINT = (120, 124, 132)
MARGIN, GAP, LABEL_HEIGHT, TITLE_HEIGHT = 16, 8, 20, 34


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` indices spread evenly over ``count`` frames, with the first and the last.

    Fewer where there are not as many frames.
    """
    if wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [0]
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def contact_sheet(
    frames: Sequence[np.ndarray],
    columns: int,
    labels: Sequence[str] = (),
    *,
    title: str = "",
    tile_width: int = 160,
) -> Image.Image:
    """Lay ``frames`` out in rows, left to right, on one sheet.

    Args:
        frames: uint8 (H, W, 3), all of one size; at least one.
        columns: frames in a row; the last row may be shorter.
        labels: one for each frame, or none at all.
        title: a line over the frames, cut to the width of the sheet.
        tile_width: width of a frame on the sheet, px. Small frames are enlarged by whole steps,
            without smoothing, so that the sheet shows the pixels that are there.
    """
    assert len(frames) > 0 and columns > 0
    assert len(labels) in (0, len(frames)), f"{len(labels)} labels for {len(frames)} frames"
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    tile_w, tile_h = _tile_size(frames[0].shape[1], frames[0].shape[0], tile_width)
    step_x, step_y = tile_w + GAP, tile_h + (LABEL_HEIGHT if labels else 0) + GAP
    top = MARGIN + (TITLE_HEIGHT if title else 0)
    sheet = Image.new("RGB", (2 * MARGIN + columns * step_x - GAP, top + rows * step_y - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        font = ImageFont.load_default(17)
        draw.text((MARGIN, MARGIN - 3), _cut(title, font, sheet.width - 2 * MARGIN), INK, font)
    small = ImageFont.load_default(13)
    for i, frame in enumerate(frames):
        x, y = MARGIN + (i % columns) * step_x, top + (i // columns) * step_y
        resample = Image.Resampling.NEAREST if tile_w >= frame.shape[1] else Image.Resampling.LANCZOS
        sheet.paste(Image.fromarray(frame).resize((tile_w, tile_h), resample), (x, y))
        if labels:
            draw.text((x + tile_w / 2, y + tile_h + 3), labels[i], FAINT, small, anchor="ma")
    return sheet


def _tile_size(width: int, height: int, wanted: int) -> tuple[int, int]:
    if width <= wanted:
        scale = max(1, wanted // width)
        return width * scale, height * scale
    return wanted, max(1, round(height * wanted / width))


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
