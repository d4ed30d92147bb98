"""Lists of videos with captions: CSV, JSON Lines and Parquet, read as rows."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framepack.errors import InputError

PATHS = ("path", "file", "video", "file_name", "filename", "video_path", "file_path")
CAPTIONS = ("caption", "text", "prompt")
STARTS, STOPS = ("start", "start_time"), ("stop", "end", "end_time")
"""Names of columns, the first found counts."""


@dataclass(frozen=True)
class Row:
    """A row: a path as it stands there, a caption if the list has that column, a span in seconds."""

    path: str
    caption: str | None
    start: float | None
    stop: float | None


def read_rows(file: Path) -> Iterator[Row | str]:
    """The rows of a list, or what is wrong with one.

    Raises:
        InputError: no list of videos, or a kind that cannot be read here.
    """
    for number, cells in enumerate(LISTS[file.suffix.lower()](file), start=1):
        if isinstance(cells, str):
            yield f"row {number} {cells}"
            continue
        named = {str(name).strip().lower(): value for name, value in cells.items()}
        path = _first(named, PATHS)
        if number == 1 and not set(named) & set(PATHS):
            raise InputError(
                f"'{file}' has columns {', '.join(named)}: a list of videos has one of {', '.join(PATHS)}"
            )
        if path is None or not str(path).strip():
            yield f"row {number} names no file"
            continue
        try:
            start, stop = (_seconds(_first(named, names)) for names in (STARTS, STOPS))
        except ValueError as error:
            yield f"row {number} has a span that is no number of seconds ({error})"
            continue
        if stop is not None and stop <= (start or 0.0):
            yield f"row {number} has a span from {start or 0:g} to {stop:g} s, which is nothing"
            continue
        caption = _first(named, CAPTIONS)
        has = bool(set(named) & set(CAPTIONS))
        yield Row(str(path).strip(), str(caption or "") if has else None, start, stop)


def _first(cells: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((cells[name] for name in names if name in cells), None)


def _seconds(value: Any) -> float | None:
    if value is None or value == "":
        return None
    seconds = float(value) if isinstance(value, (int, float, str)) else math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(repr(value))
    return seconds


def _csv(file: Path) -> Iterator[dict[str, Any] | str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for cells in csv.DictReader(lines):
                yield "has more cells than there are columns" if None in cells else cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{file}' cannot be read ({error}): save it as CSV in UTF-8") from error


def _jsonl(file: Path) -> Iterator[dict[str, Any] | str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if not line.strip():
                    continue
                try:
                    cells = json.loads(line)
                except ValueError as error:
                    yield f"is not JSON ({error})"
                    continue
                yield cells if isinstance(cells, dict) else "is no JSON object"
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' cannot be read ({error}): save it as JSON Lines in UTF-8") from error


def _parquet(file: Path) -> Iterator[dict[str, Any] | str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(
            f"'{file}' is Parquet, and pyarrow is not installed: pip install 'framepack-ai[data]', "
            "or give CSV"
        ) from None
    try:
        with parquet.ParquetFile(file) as table:
            wanted = {*PATHS, *CAPTIONS, *STARTS, *STOPS}
            columns = [name for name in table.schema_arrow.names if name.strip().lower() in wanted]
            for batch in table.iter_batches(columns=columns or None):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"'{file}' cannot be read ({error}): write it again") from error


LISTS: dict[str, Callable[[Path], Iterator[dict[str, Any] | str]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
