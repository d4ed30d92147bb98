"""A run that begins with what another one has made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from framepack.errors import InputError
from framepack.generation.lines import to_line
from framepack.generation.manifest import NAME, read_log, unwritable, write_file

FORK = "fork"
LATENTS = "latents"


def fork_run(source: Path, target: Path) -> None:
    """Make a run folder that holds all that another one does; latents share their bytes, where they can.

    The other folder may be deleted afterwards, and neither changes by what is done to the other. Stopped at
    any time, there is either the whole folder or none.

    Raises:
        InputError: the source is no run folder, or the target is there.
        OutputError: it cannot be written.
    """
    header, _, good = read_log(source)
    if header is None:
        raise InputError(f"'{source}' is no work folder of a run: give one that holds {NAME}")
    if target.exists():
        raise InputError(f"'{target}' exists: choose another folder for the run that goes on from '{source}'")
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        (part / LATENTS).mkdir(parents=True)
        for file in sorted((source / LATENTS).glob("*.safetensors")):
            _share(file, part / LATENTS / file.name)
        for file in sorted(source.glob("given-*.png")):
            _share(file, part / file.name)
        log = (source / NAME).read_bytes()[:good]
        write_file(part / NAME, log + to_line({"kind": FORK, "of": source.name}))
        part.rename(target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise unwritable(target, error) from error


def edited(folder: Path) -> bool:
    """Whether a section was changed since the folder was forked, or since it was begun."""
    _, records, _ = read_log(folder)
    kinds = [record["kind"] for record in records]
    last = len(kinds) - kinds[::-1].index(FORK) if FORK in kinds else 0
    return "edit" in kinds[last:]


def _share(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(file, target)
