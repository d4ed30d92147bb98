"""Contact sheets: frames of a video side by side, each with its time under it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER = (250, 250, 248)
INK = (40, 42, 48)
FAINT = (120, 124, 132)
MARGIN, GAP, LABEL_HEIGHT, TITLE_HEIGHT = 16, 8, 20, 34
TITLE_SIZE, LABEL_SIZE = 17, 13
FONTS = (
    *("NotoSansCJK-Regular.ttc", "fonts-japanese-gothic.ttf", "ipaexg.ttf", "ipag.ttf"),
    *("ヒラギノ角ゴシック W3.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf"),
    *("DroidSansFallbackFull.ttf", "DejaVuSans.ttf"),
)
"""Fonts of the system to look for when Pillow's own, which is Latin, can't show a title."""


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
        title: a line over the frames, cut to the width of the sheet; left out where no font at hand
            shows all of its characters.
        tile_width: width of a frame on the sheet, px. Small frames are enlarged by whole steps,
            without smoothing, so that the sheet shows the pixels that are there.
    """
    assert len(frames) > 0 and columns > 0
    assert len(labels) in (0, len(frames)), f"{len(labels)} labels for {len(frames)} frames"
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    tile_w, tile_h = _tile_size(frames[0].shape[1], frames[0].shape[0], tile_width)
    step_x, step_y = tile_w + GAP, tile_h + (LABEL_HEIGHT if labels else 0) + GAP
    width = columns * step_x - GAP
    line = _line(" ".join(title.split()), width)
    top = MARGIN + (TITLE_HEIGHT if line else 0)
    sheet = Image.new("RGB", (2 * MARGIN + width, top + rows * step_y - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    if line:
        draw.text((MARGIN, MARGIN - 3), line[0], INK, line[1])
    small = ImageFont.load_default(LABEL_SIZE)
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


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _line(text: str, width: int) -> tuple[str, Font] | None:
    """As much of ``text`` as fits into ``width`` px, and the first font that shows it; None without one."""
    if text:
        for font in _fonts():
            cut = _cut(text, font, width)
            if _shows(font, cut):
                return cut, font
    return None


def _fonts() -> Iterator[Font]:
    yield ImageFont.load_default(TITLE_SIZE)
    for name in FONTS:
        try:
            yield ImageFont.truetype(name, TITLE_SIZE)
        except OSError:  # not on this system
            continue


def _shows(font: Font, text: str) -> bool:
    """Whether the font has a glyph for every character: others come out as what U+FFFF does."""
    missing = _pixels(font, "\uffff")
    return all(character.isspace() or _pixels(font, character) != missing for character in set(text))


def _pixels(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _cut(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    kept = bisect_right(range(len(text)), float(width), key=lambda n: font.getlength(text[:n] + "...")) - 1
    return text[: max(kept, 0)] + "..."
