"""Plots and frames as parts of a page that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framepack.evaluation import canvas as drawn
from framepack.evaluation.analysis import Measured
from framepack.evaluation.canvas import Plot
from framepack.evaluation.strips import Strip, drift_measure, revisit_strips, row_strips, same_scene

if TYPE_CHECKING:
    from markupsafe import Markup

DPI = 180
TILE, SMALLEST = 192, 96
"""Widths of a strip's frames, px: at most, and how small they are made if the page grows too large."""
STRIPS_BYTES = 5_000_000
COLOURS = {
    drawn.INK: "--ink",
    drawn.FAINT: "--faint",
    drawn.GRID: "--grid",
    drawn.ROW: "--row",
    drawn.WAITING: "--waiting",
    drawn.BETTER: "--better",
    drawn.WORSE: "--worse",
}
"""Of plots, by their names in the page, which has others for a dark screen."""


@dataclass(frozen=True)
class Picture:
    """A plot as it stands in the page. ``id``: of its own there."""

    key: str
    id: str
    title: str
    told: str
    svg: Markup


@dataclass(frozen=True)
class Shown:
    """A strip in the page: frames as data URLs with their labels; ``small``: to be enlarged as they are."""

    row: str
    what: str
    frames: tuple[tuple[str, str], ...]
    small: bool


@dataclass(frozen=True)
class Strips:
    """Of one scene in every row, and by row of its clips and of its revisits."""

    same: list[Shown]
    rows: list[tuple[str, list[Shown]]]
    walks: list[tuple[str, list[Shown]]]


def saved(plot: Plot, form: str) -> bytes:
    """A figure's bytes, the same each time: without a date, and with ids made from its name."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.key}):
        metadata: dict[str, Any] = {"Date": None} if form == "svg" else {}
        plot.figure.savefig(out, format=form, dpi=DPI if form == "png" else 72, metadata=metadata)
    return out.getvalue()


def inline(svg: str, prefix: str) -> Markup:
    """Matplotlib's SVG as part of a page: letters and colours of the page, and ids that are its own.

    Names in it were escaped by matplotlib.
    """
    from markupsafe import Markup

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
    return Markup("".join(_ours(part) for part in re.split(r"(<[^>]*>)", svg)))


def _ours(part: str) -> str:
    """A tag of a plot with the page's colours and letters, and numbers no finer than seen; text as it is."""
    if not part.startswith("<"):
        return part.strip("\n") if not part.strip() else part
    part = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", part)
    part = re.sub(r"(-?\d+\.\d)\d+", r"\1", part)
    part = re.sub(r"\s+", " ", part)
    for colour, name in COLOURS.items():
        part = part.replace(colour, f"var({name})")
    return part.replace(f"fill: {drawn.PAPER}", "fill: var(--paper)")


def strips_of(found: Measured) -> Strips:
    """All strips of a suite, small enough for one page."""
    measure, numbers = drift_measure(found), range(len(found.rows))
    same = list(same_scene(found, measure)) if measure else []
    rows = [(found.name(row), list(row_strips(found, row, measure)) if measure else []) for row in numbers]
    walks = [(found.name(row), list(revisit_strips(found, row))) for row in numbers]
    strips = [*same, *(strip for _, part in (*rows, *walks) for strip in part)]
    width, quality = TILE, 80
    encoded = _encoded(strips, width, quality)
    while sum(len(url) for urls in encoded for url in urls) > STRIPS_BYTES and width > SMALLEST:
        width, quality = width * 3 // 4, 70
        encoded = _encoded(strips, width, quality)
    shown = {id(strip): _shown(strip, urls) for strip, urls in zip(strips, encoded, strict=True)}

    def all_of(parts: Iterable[Strip]) -> list[Shown]:
        return [shown[id(strip)] for strip in parts]

    return Strips(
        all_of(same),
        [(name, all_of(part)) for name, part in rows if part],
        [(name, all_of(part)) for name, part in walks if part],
    )


def _shown(strip: Strip, urls: Sequence[str]) -> Shown:
    frames = tuple(zip(urls, strip.labels, strict=True))
    return Shown(strip.row, strip.what, frames, strip.frames[0].shape[1] <= TILE)


def _encoded(strips: Sequence[Strip], width: int, quality: int) -> list[list[str]]:
    return [[_data_url(frame, width, quality) for frame in strip.frames] for strip in strips]


def _data_url(frame: NDArray[np.uint8], width: int, quality: int) -> str:
    image = Image.fromarray(frame)
    if image.width > width:
        image = image.resize(
            (width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS
        )
    out = io.BytesIO()
    image.save(out, format="WEBP", quality=quality, method=2)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
