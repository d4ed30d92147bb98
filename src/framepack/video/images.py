"""Pictures a user brings: checked from the header first, decoded only when they are worth it."""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from framepack.errors import InputError, first_line

MAX_PIXELS = 50_000_000
# Named on purpose: Pillow would also hand some files to outside programs (EPS to Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")


def read_image(path: str | Path, most: int = MAX_PIXELS, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Read a picture as RGB, turned upright by its EXIF tag, with transparency laid on white.

    Args:
        formats: of Pillow's, that are looked at.

    Raises:
        InputError: missing, a folder, empty, not a picture, damaged, without pixels, or over
            ``most`` pixels (read from the header; such a file is never decoded).
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"image '{path}' is a folder: give the path of a picture file")
        if not path.is_file():
            raise InputError(f"image '{path}' does not exist: check the path")
        if path.stat().st_size == 0:
            raise InputError(f"image '{path}' is an empty file: give a picture")
        with warnings.catch_warnings():
            # Our own, lower limit speaks instead of Pillow's warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _decode(path, most, formats)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        pixels = int(found[1]) if found else None
        raise _too_large(path, pixels, most) from error
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            if _declares_no_pixels(file.read(32)):
                raise InputError(f"image '{path}' has no pixels: its width or height is 0") from error
        raise InputError(f"image '{path}' is not a picture: give a PNG, JPEG or WebP file") from error
    except PermissionError as error:
        raise InputError(f"image '{path}' may not be read: check its permissions") from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise nearly anything on files cut short or tampered with.
        detail = first_line(error)
        raise InputError(f"image '{path}' is damaged ({detail}): save it again") from error


def _decode(path: Path, most: int, formats: Sequence[str]) -> Image.Image:
    Image.init()  # fills Image.OPEN; AVIF is in newer Pillows only
    with Image.open(path, formats=[name for name in formats if name in Image.OPEN]) as image:
        width, height = image.size
        if width == 0 or height == 0:
            raise InputError(f"image '{path}' has no pixels: it is {width} x {height}")
        if width * height > most:
            raise _too_large(path, width * height, most, f"{width} x {height}")
        return as_rgb(ImageOps.exif_transpose(image))


def picture_digest(picture: Image.Image) -> str:
    """sha256 of a picture's size and RGB bytes."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def as_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB, what is transparent on white."""
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey at 255 instead of scaling it.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _too_large(path: Path, pixels: int | None, most: int, size: str | None = None) -> InputError:
    shown = size or (f"{pixels / 1e6:.0f} megapixels" if pixels else "too many pixels")
    limit = f"the limit is {most // 1_000_000} megapixels"
    return InputError(f"image '{path}' is too large ({shown}): {limit}; scale it down")


def _declares_no_pixels(head: bytes) -> bool:
    """Whether a PNG, GIF or BMP header states a width or height of 0 (Pillow calls these unknown)."""
    if head.startswith(b"\x89PNG") and len(head) >= 24:
        return 0 in struct.unpack(">II", head[16:24])
    if head.startswith(b"GIF8") and len(head) >= 10:
        return 0 in struct.unpack("<HH", head[6:10])
    if head.startswith(b"BM") and len(head) >= 26:
        return 0 in struct.unpack("<ii", head[18:26])
    return False
