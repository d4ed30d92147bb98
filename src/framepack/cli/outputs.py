"""Pictures that verbs write beside their result: ours may be replaced, others' not."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from framepack.errors import OutputError
from framepack.video.io import check_output

SOFTWARE = "framepack"
"""Value of the PNG key Software in every picture written here."""


def check_png(path: Path, *, overwrite: bool = False) -> Path:
    """Say whether a PNG could be written at ``path``, leaving nothing behind.

    One that framepack wrote itself may be replaced: the same command run again writes it anew.

    Raises:
        OutputError: as `check_output`, and for a file of another origin unless ``overwrite``.
    """
    check_output(path, overwrite=True, suffix=".png")
    if path.exists() and not overwrite and not _is_ours(path):
        raise OutputError(f"output '{path}' exists: choose another name or pass --overwrite")
    return path


def _is_ours(path: Path) -> bool:
    # Our PNGs state their software in the first chunks; no need to decode the picture.
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(b"\x89PNG") and b"Software\0" + SOFTWARE.encode() in head


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture, marked as ours, whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    marks = PngInfo()
    marks.add_text("Software", SOFTWARE)
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
