"""Where the state of a run lies on disk, so that any number of processes can go on from it.

    state.safetensors                    of one process: all tensors whole
    state-000100-1-of-2.safetensors ...  of two, after step 100: each its own rows of every tensor, and in the
                                         metadata the first of them, by the parameter's name

All are plain safetensors of the same names. A set of files that lacks one is none, and of whole sets the one
of the latest step counts; so a run that is killed while it saves has the set from before, though no file
system replaces several files at once. PyTorch's distributed checkpoints describe theirs in a pickle; their
variant in safetensors has no such rule for sets that are whole, and would spare only the slicing of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open


def shard_file(path: Path, step: int, rank: int, count: int) -> Path:
    """The file of one process among ``count``, where ``path`` is that of one alone."""
    return path.with_name(f"{path.stem}-{step:06d}-{rank + 1}-of-{count}{path.suffix}")


def state_files(path: Path) -> tuple[Path, ...]:
    """The files of the latest state, by process; none where nothing was saved."""
    sets = {(step, len(files)): files for step, files in _sets(path) if None not in files}
    if path.exists():
        with safe_open(path, "pt") as held:
            sets[json.loads(held.metadata()["step"]), 1] = [path]
    return tuple(file for file in sets[max(sets)] if file) if sets else ()


def keep_only(path: Path, files: Sequence[Path]) -> None:
    """Remove all states but this, and what processes that were killed had of theirs."""
    for file in (path, *_shards(path), *path.parent.glob(f".{path.stem}-*-of-*.part")):
        if file not in files:
            file.unlink(missing_ok=True)


def _shards(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))


def _sets(path: Path) -> list[tuple[int, list[Path | None]]]:
    """Steps, and the files of each by process, None for one that is not there."""
    found: dict[tuple[int, int], list[Path | None]] = {}
    for file in _shards(path):
        named = re.fullmatch(rf"{re.escape(path.stem)}-(\d+)-(\d+)-of-(\d+)", file.stem)
        if named:
            step, number, count = (int(part) for part in named.groups())
            found.setdefault((step, count), [None] * count)[number - 1] = file
    return [(step, files) for (step, _), files in found.items()]
