"""The videos of an arena: rows of clips, paired by file name.

DIR/rows/ROW/clips/NAME.mp4    as a suite writes them
DIR/ROW/NAME.mp4               made anywhere
DIR/arena/                     what the arena itself writes: judgements and ratings
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from framepack.errors import InputError

LAYOUT = "give a folder of rows, each a folder of .mp4 files"
OWN = "arena"


class Matchup(NamedTuple):
    """The same clip of two rows; ``rows`` in alphabetical order."""

    rows: tuple[str, str]
    clip: str


@dataclass(frozen=True)
class ArenaFolder:
    """``rows``: by row and by the clip's file name its video, as found when the folder was read."""

    path: Path
    rows: Mapping[str, Mapping[str, Path]]

    @property
    def own(self) -> Path:
        """Where judgements and ratings are kept."""
        return self.path / OWN

    @cached_property
    def matchups(self) -> tuple[Matchup, ...]:
        """All that can be asked: every clip that two rows have in common."""
        return tuple(
            Matchup((first, second), clip)
            for first, second in combinations(sorted(self.rows), 2)
            for clip in sorted(self.rows[first].keys() & self.rows[second].keys())
        )

    @property
    def alone(self) -> tuple[str, ...]:
        """Rows without a clip in common with any other; they are never shown."""
        return tuple(sorted(self.rows.keys() - {row for matchup in self.matchups for row in matchup.rows}))


def read_folder(path: Path) -> ArenaFolder:
    """Find the rows of an arena.

    Raises:
        InputError: no folder, no rows, one row, or no clip that two rows have in common.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"'{path}' {what}: {LAYOUT}")
    suite = (path / "rows").is_dir()
    places = {row.name: row / "clips" if suite else row for row in _visible(path / "rows" if suite else path)}
    rows = {name: _videos(place) for name, place in places.items()}
    found = ArenaFolder(path, {name: clips for name, clips in rows.items() if clips})
    if not found.rows:
        where = f"{path}/rows/*/clips" if suite else f"{path}/*"
        raise InputError(f"no videos in '{where}': {LAYOUT}")
    if len(found.rows) == 1:
        raise InputError(f"'{path}' has one row with videos, '{next(iter(found.rows))}': give two or more")
    if not found.matchups:
        names = ", ".join(f"{row}/{next(iter(clips))}" for row, clips in list(found.rows.items())[:2])
        raise InputError(
            f"no two rows of '{path}' have a video of one name ({names}): name what is to be compared alike"
        )
    return found


def _videos(place: Path) -> dict[str, Path]:
    if not place.is_dir():
        return {}
    return {file.name: file.resolve() for file in _visible(place) if _is_video(file)}


def _is_video(file: Path) -> bool:
    return file.suffix.lower() == ".mp4" and file.is_file()


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, by name; hidden are videos that are still being written."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
