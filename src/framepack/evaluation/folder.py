"""The folder of a suite.

OUT/suite.json                 what was asked for; the same command goes on with it
OUT/cache/                     clips to learn from, shared by all rows
OUT/clips/, OUT/revisits/      what is asked for: pictures and prompts
OUT/rows/ROW/train/            a row's fine-tune and its model
OUT/rows/ROW/clips/NAME.mp4    its videos, and revisits/NAME.mp4
OUT/rows/ROW/scores/NAME.json  their scores, and returns/NAME.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from framepack.errors import InputError, OutputError
from framepack.evaluation.clips import Asked
from framepack.evaluation.suite import CLIPS, REVISITS, Suite
from framepack.generation.manifest import write_file

CARD = "suite.json"
GROWS = ("clips", "revisits")
"""Of a budget: what may be more in a later run of the same folder."""
TOLD = {CLIPS: "scores", REVISITS: "returns"}
"""Folder of what is known about the videos of each."""
TRAINED = "finished"
"""File in the folder of a fine-tune that is."""


def slug(text: str) -> str:
    """A name for files and ids, of the letters and digits of any script."""
    plain = "".join(c if c.isalnum() else " " for c in text.lower().replace("+", " plus "))
    return "-".join(plain.split()) or "x"


def row_folder(out: Path, row: str) -> Path:
    """Where a row's training, videos and scores lie."""
    return out / "rows" / slug(row)


def begin(folder: Path, suite: Suite) -> None:
    """Make a folder that of a suite, or find that it is: card, what is asked for, links to others' videos.

    Raises:
        OutputError: it holds a suite of other settings, or cannot be written.
        InputError: videos made elsewhere that are fewer than the clips.
    """
    claim(folder, suite)
    for of, asked in ((CLIPS, suite.clips()), (REVISITS, suite.revisits())):
        if asked:
            write_clips(asked, folder / of)
    link_others(folder, suite)


def claim(folder: Path, suite: Suite) -> None:
    """Write the card of a suite where there is none.

    Raises:
        OutputError: the folder holds a suite of other settings, or cannot be written.
    """
    card, wanted = folder / CARD, suite.to_json()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if card.exists():
            differing = _differing(json.loads(card.read_text()), json.loads(json.dumps(wanted)))
            if differing:
                raise OutputError(
                    f"'{folder}' holds a suite with other {', '.join(differing)}: name another --out"
                )
        elif any(folder.iterdir()):
            raise OutputError(f"'{folder}' is not empty and holds no suite: name another --out")
        write_file(card, (json.dumps(wanted, indent=2) + "\n").encode())
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"'{folder}' cannot be used ({error}): name another --out") from error


def link_others(folder: Path, suite: Suite) -> None:
    """Put links to videos made elsewhere where a row's own would be: by name, or else in alphabetical order.

    Raises:
        InputError: fewer of them than clips, where their names are other ones.
    """
    names = suite.names(CLIPS)
    for row, place in suite.others:
        videos = {path.stem: path for path in sorted(place.glob("*.mp4"))}
        if not set(names) <= set(videos):
            if len(videos) < len(names):
                raise InputError(
                    f"row '{row}': '{place}' has {len(videos)} videos for {len(names)} clips; make those "
                    f"asked for in '{folder / CLIPS}', or lower --clips"
                )
            videos = dict(zip(names, videos.values(), strict=False))
        here = row_folder(folder, row) / CLIPS
        here.mkdir(parents=True, exist_ok=True)
        for name in names:
            link = here / f"{name}.mp4"
            if not link.exists():
                link.symlink_to(videos[name].resolve())


def _differing(held: Any, wanted: dict[str, Any]) -> list[str]:
    """Fields in which a card is of another suite: more clips, and further rows, are the same one."""
    if not isinstance(held, dict):
        return ["form"]
    found = [name for name in wanted if name not in ("budget", "rows") and held.get(name) != wanted[name]]
    budgets = [
        {name: value for name, value in each.get("budget", {}).items() if name not in GROWS}
        for each in (held, wanted)
    ]
    if budgets[0] != budgets[1]:
        found.append("budget")
    rows = {row["name"]: row for row in held.get("rows", [])}
    found += [
        f"row '{row['name']}'" for row in wanted["rows"] if row["name"] in rows and rows[row["name"]] != row
    ]
    return found


def write_clips(asked: Sequence[Asked], folder: Path) -> None:
    """The pictures and prompts as files, for other tools."""
    folder.mkdir(parents=True, exist_ok=True)
    for clip in asked:
        write_file(folder / f"{clip.name}.txt", (clip.prompt + "\n").encode())
        if clip.picture is not None and not (folder / f"{clip.name}.png").exists():
            Image.fromarray(clip.picture).save(folder / f"{clip.name}.png")
