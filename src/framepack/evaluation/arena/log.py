"""What was asked and what was answered: ``judgements.jsonl``, which only ever grows.

One record for each pair that a judge is given, one for each judgement. A judgement counts until the same
pair is judged again; undoing one is a judgement of None. Every record is on disk before the judge hears of
it, so that killing a server loses nothing that was acknowledged. Any number of processes may use one log at
once: who writes holds the file's lock, and reads first what others have written.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from framepack.errors import OutputError
from framepack.generation.lines import Record, append_line, parse_lines
from framepack.generation.manifest import sync_folder

NAME = "judgements.jsonl"

Choice = Literal["left", "right", "tie", "skip"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two videos of one clip as a judge is given them.

    id: tells nothing about them. left, right: rows. question: as the log has it; other questions are other
    judgements. time: when it was given, in seconds since 1970.
    """

    id: str
    judge: str
    question: str
    clip: str
    left: str
    right: str
    time: float

    def row(self, choice: str) -> str | None:
        """The row on that side; None for a choice that is no side."""
        return {"left": self.left, "right": self.right}.get(choice)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge chose, and when."""

    pair: Pair
    choice: Choice
    time: float


class JudgementLog:
    """A log as far as it has been read; ``refresh`` and ``held`` read on.

    Attributes:
        pairs: by id, in the order in which they were given.
        judgements: by the pair's id those that count, in the order in which they were made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.pairs: dict[str, Pair] = {}
        self.judgements: dict[str, Judgement] = {}
        self._read = 0
        """Bytes of the file that have been read, up to the end of a line."""
        self._threads = threading.Lock()
        self._file: int | None = None

    def refresh(self) -> None:
        """Read what was added, without a lock; nothing where there is no log yet.

        Raises:
            OutputError: it cannot be read, or is damaged before its last line.
        """
        with self._threads:
            try:
                file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return
            except OSError as error:
                raise self._error("read", error) from error
            try:
                self._follow(file)
            finally:
                os.close(file)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the log, up to date and with a torn last line cut off: only now may be written.

        Raises:
            OutputError: it cannot be written, or is damaged before its last line.
        """
        with self._threads:
            file = self._open()
            try:
                if self._follow(file) != self._read:
                    os.ftruncate(file, self._read)
                self._file = file
                yield
            finally:
                self._file = None
                os.close(file)  # releases the lock

    def give(self, pair: Pair) -> None:
        """Record that a judge is given a pair. The log must be held."""
        self._append({"kind": "pair", **asdict(pair)})

    def judge(self, pair: str, choice: Choice | None, time: float) -> None:
        """Record what was chosen of a pair, or None to undo it; on return it is on disk.

        The log must be held, and the pair be in it. What is so already is not recorded again.
        """
        before = self.judgements.get(pair)
        if choice != (before.choice if before else None):
            self._append({"kind": "judgement", "pair": pair, "choice": choice, "time": time})

    def _append(self, record: Record) -> None:
        assert self._file is not None, "a log is written while it is held"
        try:
            self._read += append_line(self._file, record)
        except OSError as error:
            raise self._error("written", error) from error
        self._apply(record)

    def _open(self) -> int:
        try:
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            if new:
                sync_folder(self.path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise self._error("written", error) from error
        return file

    def _follow(self, file: int) -> int:
        """Read on from where it was left off; returns the size of the file."""
        size = os.fstat(file).st_size
        if size < self._read:
            raise OutputError(f"'{self.path}' has become shorter: start the arena again to go on from there")
        data = bytearray()
        while part := os.pread(file, size - self._read - len(data), self._read + len(data)):
            data += part
        lines = parse_lines(bytes(data))
        if lines.damaged is not None:
            raise OutputError(
                f"'{self.path}' is damaged after {self._read + lines.good} bytes: mend or remove that line"
            )
        for record in lines.records:
            self._apply(record)
        self._read += lines.good
        return size

    def _apply(self, record: Record) -> None:
        fields = dict(record)
        kind = fields.pop("kind", None)
        if kind == "pair":
            self.pairs[fields["id"]] = Pair(**fields)
        elif kind == "judgement" and fields["pair"] in self.pairs:
            key, choice = fields["pair"], fields["choice"]
            self.judgements.pop(key, None)  # so that it stands where it was made last
            if choice is not None:
                self.judgements[key] = Judgement(
                    pair=self.pairs[key], choice=cast(Choice, choice), time=fields["time"]
                )

    def _error(self, what: str, error: OSError) -> OutputError:
        reason = error.strerror or type(error).__name__
        return OutputError(f"'{self.path}' cannot be {what} ({reason}): make room, or give another folder")
