"""The list of videos that a batch makes: a file of rows, each with the names of ``schemas.VideoIn``.

    .txt             a prompt a line; empty lines and those that begin with # are passed over
    .csv             a line of names first, then a row a line; what is empty is left out
    .jsonl           an object a line
    .yaml .yml .json a list of mappings, or of prompts

Beside those names, ``image``, ``end_image``, ``from_clip`` and ``to_clip`` are files, as the pictures of
keyframes are; their paths are relative to the list.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from framepack.errors import InputError, UnknownNameError, first_line
from framepack.serving.form import CLIPS, JSON_FIELDS, told
from framepack.serving.schemas import VideoIn

MAX_BYTES = 50_000_000
FILES = ("image", "end_image", *CLIPS)
NAMES = (*VideoIn.model_fields, *FILES)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One video that is asked for.

    line: where it stands, from 1. video: its fields. files: what it is made from, by the names that its
    fields have for them.
    """

    line: int
    video: VideoIn
    files: Mapping[str, Path]


def read_rows(path: Path, defaults: Mapping[str, Any]) -> list[Row]:
    """All rows of a list.

    Args:
        defaults: fields of rows that do not say otherwise.

    Raises:
        InputError: it cannot be read, or a row has a fault; the line is named.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"list '{path}' ends in '{path.suffix}': give a file that ends in {', '.join(READERS)}"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"list '{path}' has more than {MAX_BYTES:,} bytes: split it")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"list '{path}' is not UTF-8 text: save it as such") from error
    except OSError as error:
        raise InputError(f"list '{path}' cannot be read ({error.strerror}): check the path") from error
    line = 1
    rows: list[Row] = []
    try:
        for line, fields in reader(text):
            rows.append(_row(path, line, fields, defaults))
    except InputError as error:
        raise InputError(f"'{path}' line {line}: {error}") from error
    except _Unread as error:
        raise InputError(f"'{path}' line {error.line}: {error}") from error
    if not rows:
        raise InputError(f"list '{path}' has no rows: write a prompt a line")
    return rows


class _Unread(Exception):
    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def _row(path: Path, line: int, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> Row:
    for name in fields:
        if name not in NAMES:
            raise UnknownNameError("name", str(name), NAMES)
    # A row's own length stands in place of the default one, whichever way it is given.
    lengths = {"seconds", "frames"} if {"seconds", "frames"} & set(fields) else set()
    whole = {**{name: value for name, value in defaults.items() if name not in lengths}, **fields}
    try:
        video = VideoIn.model_validate({n: v for n, v in whole.items() if n not in FILES})
    except ValidationError as error:
        raise InputError(told(error)) from error
    named = {name: whole[name] for name in FILES if whole.get(name) is not None}
    named |= {keyframe.picture: keyframe.picture for keyframe in video.keyframes}
    files: dict[str, Path] = {}
    for name, file in named.items():
        if not isinstance(file, str) or not file.strip():
            raise InputError(f"{name}: give the path of a file")
        files[name] = path.parent / file
        if not files[name].is_file():
            raise InputError(f"{name} '{file}' does not exist beside the list: check the path")
    return Row(line=line, video=video, files=files)


# The kinds of files ----------------------------------------------------------------------------------------


def _prompts(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, prompt in enumerate(text.splitlines(), start=1):
        if prompt.strip() and not prompt.lstrip().startswith("#"):
            yield line, {"prompt": prompt.strip()}


def _table(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    cells = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    line = 0
    while True:
        line = cells.line_num + 1  # a cell may go over several
        try:
            found = next(cells, None)
        except csv.Error as error:
            raise _Unread(
                line, f"it is no CSV ({error}): put cells with commas or quotes in quotes"
            ) from error
        if found is None:
            return
        if not any(cell.strip() for cell in found):
            continue
        if not names:
            names = [cell.strip() for cell in found]
            for name in names:
                if name not in NAMES:
                    raise _Unread(line, str(UnknownNameError("column", name, NAMES)))
            if len(set(names)) < len(names):
                raise _Unread(line, "a column is there twice: keep one")
            continue
        if len(found) > len(names):
            raise _Unread(
                line, f"{len(found)} cells for {len(names)} columns: put cells with commas in quotes"
            )
        row: dict[str, Any] = {n: c.strip() for n, c in zip(names, found, strict=False) if c.strip()}
        for name in JSON_FIELDS:
            if name in row:
                row[name] = _json(line, row[name], name)
        yield line, row


def _objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # JSON has line ends of its own only: others may stand in its strings.
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        row = _json(line, written, "the line")
        if not isinstance(row, dict):
            raise _Unread(line, 'the line is no object: write {"prompt": "..."}')
        yield line, row


def _json(line: int, text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unread(line, f"{name} is no JSON ({first_line(error)})") from error


def _list(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return
        if not isinstance(root, yaml.SequenceNode):
            raise _Unread(root.start_mark.line + 1, "it is no list: begin each video with a dash")
        for node in root.value:
            row = loader.construct_object(node, deep=True)
            line = node.start_mark.line + 1
            if isinstance(row, str):
                row = {"prompt": row}
            if not isinstance(row, dict):
                raise _Unread(line, "a video is written as 'name: value' lines, or as its prompt in quotes")
            yield line, row
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or first_line(error)
        raise _Unread(1 if mark is None else mark.line + 1, f"it is no YAML: {why}") from error
    except (RecursionError, ValueError) as error:
        raise _Unread(1, f"it cannot be read as YAML: {first_line(error)}") from error
    finally:
        loader.dispose()


READERS: dict[str, Callable[[str], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".txt": _prompts,
    ".csv": _table,
    ".jsonl": _objects,
    ".yaml": _list,
    ".yml": _list,
    ".json": _list,
}
