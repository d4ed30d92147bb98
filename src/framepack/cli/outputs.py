"""Pictures that verbs write beside their result: the same command may replace its own, and no others."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from framepack.errors import OutputError
from framepack.video.io import check_output

SOFTWARE = "framepack"
"""Value of the PNG key Software in every picture written here."""


def check_png(path: Path, source: str, *, image: Path | None = None, overwrite: bool = False) -> Path:
    """Say whether a PNG could be written at ``path``, leaving nothing behind.

    One that was written from the same ``source`` may be replaced: the same command run again writes it
    anew.

    Args:
        source: what the picture is made from, such as ``job 0123456789ab``; ASCII.
        image: a picture that is read, and so never written.

    Raises:
        OutputError: as `check_output`; for ``image`` itself; for a file of another origin unless
            ``overwrite``.
    """
    check_output(path, overwrite=True, suffix=".png")
    if not path.exists():
        return path
    if image is not None and image.exists() and path.samefile(image):
        raise OutputError(f"output '{path}' is the picture that --image names: choose another name")
    if not overwrite and not _is_from(path, source):
        raise OutputError(f"output '{path}' exists: choose another name or pass --overwrite")
    return path


def _is_from(path: Path, source: str) -> bool:
    # Our PNGs state their source in the first chunks; no need to decode the picture.
    with path.open("rb") as file:
        head = file.read(4096)
    text = b"Source\0" + source.encode("ascii")
    return head.startswith(b"\x89PNG") and struct.pack(">I", len(text)) + b"tEXt" + text in head


def save_png(image: Image.Image, path: Path, source: str) -> None:
    """Write a picture, marked with its ``source``, whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    marks = PngInfo()
    marks.add_text("Software", SOFTWARE)
    marks.add_text("Source", source)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(part, format="PNG", pnginfo=marks)
        part.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"output '{path}' cannot be written ({reason}): choose another place") from error
    finally:
        part.unlink(missing_ok=True)
