"""Append-only files of JSON objects, one a line, that outlive the process that writes them.

A process may die at any moment: a last line without its line feed, or one that is no JSON, is as if it had
never been written, and the next to append cuts it off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

Record = dict[str, Any]


class Lines(NamedTuple):
    """What the bytes of such a file hold.

    records: those that are whole. good: the bytes they fill. damaged: index of a line that is no record
    though others follow it, which no killed process leaves; None where all is well.
    """

    records: list[Record]
    good: int
    damaged: int | None


def parse_lines(data: bytes) -> Lines:
    """Read up to the end, or up to the first line that is no record."""
    records: list[Record] = []
    good = 0
    lines = data.splitlines(keepends=True)
    for index, line in enumerate(lines):
        record = _parse(line)
        if record is None:
            return Lines(records, good, index if index + 1 < len(lines) else None)
        records.append(record)
        good += len(line)
    return Lines(records, good, None)


def append_line(handle: int, record: Mapping[str, Any]) -> int:
    """Add a record to an open file; on return it is on disk. Gives its length in bytes.

    Raises:
        OSError: the disk is full or gone; the file is as long as before.
    """
    line, size = to_line(record), os.fstat(handle).st_size
    try:
        write_all(handle, line)
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)  # a full disk may have taken half a line
        raise
    return len(line)


def to_line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, sort_keys=True, allow_nan=False) + "\n").encode()


def write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
