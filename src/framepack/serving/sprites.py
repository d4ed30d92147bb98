"""All previews of a video on one sheet."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framepack.serving.places import JobFolder
from framepack.video.images import read_image
from framepack.video.sheet import contact_sheet, spread

MOST, COLUMNS = 60, 10


def spritesheet(folder: JobFolder, previews: Sequence[Path]) -> Path:
    """A contact sheet of previews, of some of them where they are many; made once for each number."""
    place = folder.path / "previews" / f"sheet-{len(previews)}.png"
    if not place.is_file():
        shown = [np.asarray(read_image(previews[index])) for index in spread(len(previews), MOST)]
        # Two may ask for it at once: each writes a file of its own.
        part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
        contact_sheet(shown, COLUMNS).save(part, "PNG")
        part.replace(place)
    return place
