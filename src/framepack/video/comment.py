"""The settings that a video was made with, read from its file without opening a decoder.

A finished MP4 of ours holds them as JSON in its comment: ``moov/udta/meta/ilst/©cmt/data``. Only the boxes on
the way are read, so that nothing of a file from elsewhere is decoded here.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from framepack.video.boxes import boxes, inner

MOST = 10_000
"""Boxes of a file that are looked at."""
LONGEST = 4_000_000
"""Bytes of a comment."""
FULL = 4  # bytes of version and flags, before what is in a full box
TYPED = 8  # bytes of type and place, before what a data box says


def read_comment(path: Path) -> dict[str, Any]:
    """What `io.encode_video` was given as ``metadata``; nothing where the file holds none of ours."""
    with path.open("rb") as file:
        size = path.stat().st_size
        top = next((box for box in islice(boxes(file, 0, size), MOST) if box.kind == b"moov"), None)
        meta = None if top is None else inner(file, top, b"udta", b"meta")
        if meta is None:
            return {}
        data = inner(file, meta._replace(content=meta.content + FULL), b"ilst", b"\xa9cmt", b"data")
        if data is None or data.stop - data.content > LONGEST:
            return {}
        file.seek(data.content + TYPED)
        text = file.read(max(0, data.stop - data.content - TYPED))
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
