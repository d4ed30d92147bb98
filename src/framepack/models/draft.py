"""Model folders are written beside their place under a hidden name, and moved there at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from framepack.errors import OutputError
from framepack.models.spec import SPEC_FILE


def check_place(out: Path, *, overwrite: bool, apart_from: Path) -> None:
    """Say whether a model folder may be written at ``out``, writing nothing.

    Args:
        apart_from: a folder that is read; ``out`` may be neither it, nor in it, nor around it.

    Raises:
        OutputError: a file; a folder that holds anything, unless it is a model's and ``overwrite`` is set;
            a place that is not apart.
    """
    place, other = out.resolve(), apart_from.resolve()
    if place == other or place.is_relative_to(other) or other.is_relative_to(place):
        raise OutputError(f"output '{out}' and base '{apart_from}' lie in each other: choose another place")
    try:
        if place.exists() and not place.is_dir():
            raise OutputError(f"output '{out}' is a file: give a folder")
        if not place.exists() or not any(place.iterdir()):
            return
        if not (place / SPEC_FILE).is_file():
            raise OutputError(f"output '{out}' holds files that are not a model's: choose another folder")
        if not overwrite:
            raise OutputError(f"output '{out}' holds a model: choose another folder or add --overwrite")
    except OutputError:
        raise
    except OSError as error:
        raise _unwritable(out, error) from error


@contextmanager
def draft_folder(out: Path, *, size: int = 0) -> Iterator[Path]:
    """An empty folder to fill, which replaces ``out`` when the block ends; an error leaves ``out`` as it was.

    Args:
        size: bytes that will be written, for which there must be room before anything is.

    Raises:
        OutputError: no room, or a place that cannot be written.
    """
    place = out.resolve()
    draft, old = place.with_name(f".{place.name}.part"), place.with_name(f".{place.name}.old")
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
        draft.mkdir(parents=True)
        free = shutil.disk_usage(next(folder for folder in place.parents if folder.is_dir())).free
        if size > free:
            raise OutputError(
                f"output '{out}' needs {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: use another disk"
            )
        yield draft
        _move(draft, place, old)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise _unwritable(out, error) from error
        raise


def _move(draft: Path, place: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    try:
        draft.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(out: Path, error: OSError | SafetensorError) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return OutputError(
        f"output '{out}' cannot be written ({reason}): free space there or choose another place"
    )


def bring(source: Path, target: Path) -> bool:
    """Have ``target`` hold what ``source`` holds; True where a hard link did, which only weights get.

    Small files are copied, so that a change of one model's settings is not a change of the other's.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # downloads are often links into a cache
    if target.suffix == ".safetensors":
        try:
            os.link(source, target)
            return True
        except OSError:
            pass  # another disk, or one that knows no links
    shutil.copyfile(source, target)
    return False


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a draft of ``folder`` beside it, then move its files in.

    A process that dies while it writes leaves the folder as it was, and a reader never finds half a file.

    Raises:
        OutputError: the draft cannot be written; nothing of it is left.
    """
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        write(draft)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)) and not isinstance(error, OutputError):
            raise _unwritable(folder, error) from error
        raise
    written = set()
    for file in sorted(path for path in draft.rglob("*") if path.is_file()):
        place = folder / file.relative_to(draft)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
        written.add(place)
    # What an older model left: an index that stays would name shards in the place of one new file.
    for place in {place.parent for place in written}:
        for old in set(place.glob("diffusion_pytorch_model*")) - written:
            old.unlink()
    shutil.rmtree(draft)
