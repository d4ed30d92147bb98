"""A video that can be played while it is being made: a fragmented MP4 to which frames are appended.

    ftyp moov | moof mdat | moof mdat | ...

Each call appends its frames as fragments of their own, and the encoder is drained at the end of each: after
`GrowingVideo.append` returns no frame is held back, and no fragment refers to another. What a fragment holds
is made from its frames alone, so a file that was cut off and resumed is the file that would have been, as far
as x264 repeats itself: exactly at widths of whole 128 px, and to within its noise at others. A key frame
begins each fragment: frames appended one at a time would all be key frames.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np

from framepack.errors import OutputError
from framepack.video.boxes import Box, boxes, fragments, header_of, inner, placed
from framepack.video.io import describe, encode, unwritable

LONGEST = 240
"""Frames of a fragment at most: they are held in memory, encoded, until the last one is there."""


class Writable(Protocol):
    """A pipe, a socket's file, ``sys.stdout.buffer``."""

    def write(self, content: bytes, /) -> int | None: ...


class GrowingVideo:
    """An MP4 that grows, with the encoder's settings of `io.encode_video`.

    At a path every fragment first lies there as free space and becomes one by a write of eight bytes: whoever
    reads the file, or kills the process, finds whole fragments only. Through a pipe they go as they come.

    Args:
        target: a path, or anything with ``write`` (nothing else is asked of it, and it is left open).
        fps: frames per second.
        metadata: anything JSON can hold; `io.read_video` gives it back.
        overwrite: replace a file that lies at the path. A pipe or device there is always written to.

    Attributes:
        frames: in the file. encoded: by this object, so without those that a resumed file held already.

    Raises:
        OutputError: the place is taken, or cannot be written.
    """

    def __init__(
        self,
        target: str | Path | Writable,
        fps: float,
        metadata: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self._open(target, fps, metadata)
        if self._file is None:
            return
        path = cast(Path, self._path)
        if path.is_file() and path.stat().st_size and not overwrite:
            self._file.close()
            raise OutputError(f"output '{path}' exists: choose another name or pass --overwrite")
        self._cut(0)

    def _open(self, target: str | Path | Writable, fps: float, metadata: Mapping[str, Any] | None) -> None:
        self.frames = self.encoded = 0
        self._fps, self._metadata = fps, metadata
        self._rate = Fraction(fps).limit_denominator(1001)
        self._end = self._number = 0  # bytes of the file; its fragments
        self._parameters: bytes | None = None
        self._file: IO[bytes] | None = None
        """Where fragments are committed; None for what is only written through."""
        self._path = Path(target) if isinstance(target, str | Path) else None
        self._through: Writable | None = None if isinstance(target, str | Path) else target
        name = getattr(target, "name", None)
        self._name = name if isinstance(name, str) else "pipe"
        if self._path is None:
            return
        try:
            if self._path.exists() and not self._path.is_file():  # a pipe with a name, a device; or a folder
                self._through = self._path.open("wb", buffering=0)
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            self._file = self._path.open("r+b", buffering=0)
        except OSError as error:
            raise unwritable(self._path, error) from error

    @classmethod
    def resume(
        cls,
        path: str | Path,
        fps: float,
        metadata: Mapping[str, Any] | None = None,
        *,
        at_most: int | None = None,
    ) -> GrowingVideo:
        """Go on with a growing file; ``frames`` tells how many are there. What is torn at its end is cut off.

        A missing or empty file is begun. The metadata of one that has frames stay as they are.

        Args:
            at_most: frames to keep: fragments that reach beyond are cut off too.

        Raises:
            OutputError: a file that is no growing video, or one of another rate; or it cannot be written.
        """
        video = cls.__new__(cls)
        video._open(path, fps, metadata)
        if video._file is not None:
            try:
                video._take_up(at_most)
            except BaseException:
                video._file.close()
                raise
        return video

    def _take_up(self, at_most: int | None) -> None:
        import av

        file, path = cast(IO[bytes], self._file), cast(Path, self._path)
        foreign = OutputError(f"'{path}' is no video that grows: choose another name")
        size = file.seek(0, os.SEEK_END)
        header = header_of(file, size)
        if header is None:
            file.seek(4)
            kind, first = file.read(4), next(boxes(file, 0, size), None)
            # A process that was killed in its first fragment leaves free space, or not so much as that.
            if size >= 8 and (kind != b"free" or (first and first.stop < size)):
                raise foreign
            self._cut(0)
            return
        whole = list(fragments(file, header.stop, size))
        end = whole[-1].stop if whole else header.stop
        if [box.kind for box in boxes(file, end, size)] not in ([], [b"free"], [b"moof"]):
            raise foreign  # whole boxes that are none of a growing video's
        end = header.stop
        for fragment in whole:
            if at_most is not None and self.frames + fragment.frames > at_most:
                break
            end, self.frames, self._number = fragment.stop, self.frames + fragment.frames, self._number + 1
        # Of the beginning alone: some ways to be torn keep libav from opening the file at all.
        file.seek(0)
        beginning = io.BytesIO(file.read(whole[0].stop if whole else header.stop))
        try:
            with av.open(beginning) as container:
                rate = container.streams.video[0].average_rate
        except (av.FFmpegError, OSError, IndexError) as error:
            raise foreign from error
        if self.frames and rate != self._rate:
            raise OutputError(
                f"'{path}' has {float(rate or 0):g} frames per second, not {self._fps:g}: choose another name"
            )
        if self.frames:
            self._parameters = _parameters(file, header)
        self._cut(end if self.frames else 0)

    def append(self, frames: Iterable[np.ndarray]) -> int:
        """Encode frames and write them; they are on disk when it returns.

        Args:
            frames: uint8 (H, W, 3), all of one size; any number, also none. See `io.encode_video`.

        Returns:
            How many there were.

        Raises:
            OutputError: the disk is full, or the reader of the pipe is gone: the file then holds the whole
                fragments before. Or the file that is resumed was made with other settings of the encoder.
        """
        rest, before = iter(frames), self.frames
        for first in rest:
            self._append(chain([first], islice(rest, LONGEST - 1)))
        return self.frames - before

    def _append(self, frames: Iterator[np.ndarray]) -> None:
        import av

        made = io.BytesIO()
        # The edit list that only a delayed moov has shows the first frame at once, B-frames or not.
        flags = "frag_custom+delay_moov+default_base_moof+skip_trailer"
        count = 0
        with av.open(made, "w", format="mp4", options={"movflags": flags}) as container:
            describe(container, self._metadata)
            for packet in encode(container, self._counted(frames), self._fps):
                container.mux(packet)
                count += 1
            step = 1 / (self._rate * container.streams.video[0].time_base)
        assert step.denominator == 1, "the muxer counts in parts of a frame"
        content = made.getvalue()
        header = header_of(made, len(content))
        assert header is not None
        parameters = _parameters(made, header)
        if self._parameters not in (None, parameters):
            raise OutputError(f"'{self._path}' was made with another size or encoder: choose another name")
        fragment = placed(content[header.stop :], self._number + 1, self.frames * int(step))
        self._write(bytes(fragment) if self._parameters else content[: header.stop] + fragment)
        self._parameters = parameters
        self._number += 1
        self.frames += count

    def _counted(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in frames:
            self.encoded += 1
            yield frame

    def _write(self, content: bytes) -> None:
        try:
            if self._file is None:
                _all(self._through, content)
                getattr(self._through, "flush", lambda: None)()
                return
            self._file.truncate(self._end)  # of an earlier call that failed
            self._put(self._end, len(content).to_bytes(4, "big") + b"free" + content[8:])
            self._put(self._end, content[:8])
            self._end += len(content)
        except OSError as error:
            if self._file is not None:
                self._cut(self._end)
            raise unwritable(self._path or self._name, error) from error

    def _put(self, at: int, content: bytes) -> None:
        file = cast(IO[bytes], self._file)
        file.seek(at)
        _all(file, content)
        os.fsync(file.fileno())

    def _cut(self, end: int) -> None:
        try:
            cast(IO[bytes], self._file).truncate(end)
        except OSError as error:
            raise unwritable(cast(Path, self._path), error) from error
        self._end = end

    def close(self) -> None:
        """Close a file that was opened here. It needs no ending: it is whole after every `append`."""
        if self._path is not None:
            cast(IO[bytes], self._file or self._through).close()

    def __enter__(self) -> GrowingVideo:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _parameters(file: IO[bytes], header: Box) -> bytes:
    """The box that tells a decoder of the stream: its size, and the encoder's parameter sets."""
    found = inner(file, header, b"trak", b"mdia", b"minf", b"stbl", b"stsd")
    assert found is not None
    file.seek(found.start)
    return file.read(found.stop - found.start)


def _all(target: Any, content: bytes) -> None:
    """Write all of ``content``: a raw file may take a part of it."""
    left = memoryview(content)
    while left:
        taken = target.write(left)
        left = left[len(left) if taken is None else taken :]
