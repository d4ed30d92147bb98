"""The boxes that an MP4 file is made of, as far as a file of fragments needs them (ISO/IEC 14496-12).

A growing file is a header (``ftyp``, ``moov``) and fragments, each a ``moof`` that tells of samples and an
``mdat`` that holds them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, NamedTuple


class Box(NamedTuple):
    """A box by its kind, four letters, and where it, its content and what follows it begin in the file."""

    kind: bytes
    start: int
    content: int
    stop: int


class Fragment(NamedTuple):
    """A whole fragment: where it begins, where the next one would, and its frames."""

    start: int
    stop: int
    frames: int


def boxes(file: IO[bytes], start: int, stop: int) -> Iterator[Box]:
    """The boxes from byte ``start`` on, up to the first that is not whole before ``stop``."""
    while start + 8 <= stop:
        file.seek(start)
        head = file.read(16)
        size, kind, content = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if size == 1:
            size, content = int.from_bytes(head[8:16], "big"), start + 16
        if start + size < content or start + size > stop:
            return
        yield Box(kind, start, content, start + size)
        start += size


def inner(file: IO[bytes], box: Box, *path: bytes) -> Box | None:
    """The first box inside ``box`` along a path of kinds."""
    found: Box | None = box
    for kind in path:
        assert found is not None
        found = next((b for b in boxes(file, found.content, found.stop) if b.kind == kind), None)
        if found is None:
            return None
    return found


def header_of(file: IO[bytes], size: int) -> Box | None:
    """The ``moov`` of a file of ``size`` bytes that begins as a growing one does; None for any other file."""
    found = boxes(file, 0, size)
    first, second = next(found, None), next(found, None)
    if first is None or second is None or (first.kind, second.kind) != (b"ftyp", b"moov"):
        return None
    return second if inner(file, second, b"mvex") else None


def fragments(file: IO[bytes], start: int, stop: int) -> Iterator[Fragment]:
    """The whole fragments from byte ``start`` on, up to the first that is not."""
    found = boxes(file, start, stop)
    for head, body in zip(found, found, strict=False):
        run = inner(file, head, b"traf", b"trun") if (head.kind, body.kind) == (b"moof", b"mdat") else None
        if run is None:
            return
        file.seek(run.content + 4)  # after version and flags
        yield Fragment(head.start, body.stop, int.from_bytes(file.read(4), "big"))


def placed(fragment: bytes, number: int, time: int) -> bytearray:
    """A ``moof`` and its ``mdat`` as fragment ``number``, from 1 on, at ``time`` in units of its track."""
    made, file = bytearray(fragment), io.BytesIO(fragment)
    head = next(boxes(file, 0, len(fragment)))
    sequence, decoding = inner(file, head, b"mfhd"), inner(file, head, b"traf", b"tfdt")
    assert sequence is not None and decoding is not None and made[decoding.content] == 1, "64-bit times"
    made[sequence.content + 4 : sequence.content + 8] = number.to_bytes(4, "big")
    made[decoding.content + 4 : decoding.content + 12] = time.to_bytes(8, "big")
    return made
