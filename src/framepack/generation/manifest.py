"""The append-only log of a run folder.

``manifest.jsonl`` holds one JSON object a line. The first line is the header (version and resolved
configuration); every further one is a record, appended and synced after what it speaks of is on
disk. A line that a killed process left half written is cut off by the next to open the log.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from framepack.errors import OutputError, RunConflictError
from framepack.generation.lines import Record, append_line, parse_lines, to_line, write_all

VERSION = 1
NAME = "manifest.jsonl"
LOCK = "lock"
GROWING, PREVIEW = "growing.mp4", "preview.mp4"
"""Videos of what there is so far: of its front, and in orders that do not begin there of all of it."""
OWN = frozenset({NAME, LOCK, "latents", f"{NAME}.part"})
"""Names that a run folder may hold before its log exists."""

RETOLD = ("prompt", "cues")
"""Parts of a configuration that may change in a folder: sections are told apart by their keys, and those that
a changed story leaves as they are stay."""


def read_log(folder: Path) -> tuple[Record | None, list[Record], int]:
    """Read a log without locking or changing it.

    Returns:
        The header, or None where there is no log; the records; the bytes that are good.

    Raises:
        RunConflictError: a line other than the last is damaged, or the version is not ours.
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None, [], 0
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read ({error.strerror}): choose another --workdir") from error
    rows, good, damaged = parse_lines(data)
    if damaged is not None:
        raise RunConflictError(f"'{path}' is damaged in line {damaged + 1}: choose another --workdir")
    if not rows:
        return None, [], 0
    header = rows[0]
    if header.get("version") != VERSION or not isinstance(header.get("config"), dict):
        raise RunConflictError(
            f"'{path}' has version {header.get('version')}, this framepack reads {VERSION}: "
            "choose another --workdir"
        )
    return header, rows[1:], good


def check_folder(folder: Path, config: Mapping[str, Any]) -> list[Record]:
    """Say whether a run of ``config`` may use ``folder``, writing nothing; gives the records there.

    Raises:
        RunConflictError: it holds a configuration that differs in more than ``RETOLD``, or somebody else's
            files.
        OutputError: it is not a folder.
    """
    header, records, _ = read_log(folder)
    if header is None:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"work folder '{folder}' is a file: choose another --workdir")
        foreign = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
        foreign = [name for name in foreign if name not in OWN]
        if foreign:
            raise RunConflictError(
                f"work folder '{folder}' holds other files ('{foreign[0]}'): choose an empty one as --workdir"
            )
        return []
    theirs, ours = header["config"], json.loads(json.dumps(dict(config)))
    names = sorted(n for n in {*theirs, *ours} if theirs.get(n) != ours.get(n) and n not in RETOLD)
    if names:
        shown = ", ".join(f"{n} {_short(theirs.get(n))}, not {_short(ours.get(n))}" for n in names[:3])
        raise RunConflictError(
            f"work folder '{folder}' belongs to another configuration ({shown}): choose another --workdir"
        )
    return records


def _story(header: Record, records: list[Record]) -> Record:
    """The prompts of the run that had the folder last."""
    told = [header["config"], *(record for record in records if record["kind"] == "told")]
    return {name: told[-1].get(name) for name in RETOLD}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


class Manifest:
    """The log of one folder, held under an exclusive lock until closed.

    Raises:
        RunConflictError, OutputError: see ``check_folder``; also when another process holds the lock.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        check_folder(folder, config)  # before anything is created
        self.folder = folder
        self.records: list[Record] = []
        self._appending = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
            try:
                self._open(config)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise unwritable(folder, error) from error

    def _open(self, config: Mapping[str, Any]) -> None:
        self.records = check_folder(self.folder, config)  # again: now nobody else can change it
        header, _, good = read_log(self.folder)
        path = self.folder / NAME
        if header is None:
            line = to_line({"version": VERSION, "config": dict(config)})
            write_file(path, line)
            good = len(line)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            if os.fstat(self._file).st_size != good:
                os.ftruncate(self._file, good)
                os.fsync(self._file)
            story = {name: config.get(name) for name in RETOLD}
            if header is not None and _story(header, self.records) != json.loads(json.dumps(story)):
                self.append({"kind": "told", **story})
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Record) -> None:
        """Add a record; on return it is on disk. To be called from any thread."""
        with self._appending:
            try:
                append_line(self._file, record)
            except OSError as error:
                raise unwritable(self.folder / NAME, error) from error
            self.records.append(record)

    def close(self) -> None:
        os.close(self._file)
        os.close(self._lock)  # releases the lock; the lock file stays, for removing it would race

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(folder: Path) -> int:
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise RunConflictError(
                f"work folder '{folder}' is in use by process {owner}: wait or choose another --workdir"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
    except BaseException:
        os.close(handle)
        raise
    return handle


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or not there: temp file, sync, rename, sync."""
    part = path.with_name(f"{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error a user sees when a write fails half way; finished sections stay."""
    reason = error.strerror or type(error).__name__
    return OutputError(f"'{path}' cannot be written ({reason}): make room, then run the same command again")
