"""A video's pictures with their times, and the pictures at a model's rate. Times are exact, in seconds."""

from __future__ import annotations

import io
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image

from framepack.errors import InputError
from framepack.video.resize import Size, to_bucket

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class VideoSource:
    """Where a video's bytes lie: in a file of their own, or ``size`` of a shard's from ``offset`` on."""

    path: Path
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Track:
    """The pictures of a video file, without the pixels.

    Attributes:
        times: when each is shown, ascending. stop: when the last one ends.
        size: (height, width) as it is shown: turned upright, with square pixels.
        pixel: width of a stored pixel, in its heights.
        unit: of the file's time stamps; each is rounded to a multiple of it.
        turns: quarter turns that made it upright.
    """

    times: tuple[Fraction, ...]
    stop: Fraction
    size: Size
    pixel: Fraction
    unit: Fraction = Fraction(0)
    turns: int = 0

    @property
    def start(self) -> Fraction:
        return self.times[0]

    @property
    def fps(self) -> float:
        """On average."""
        return float(len(self.times) / (self.stop - self.start))

    @property
    def slack(self) -> Fraction:
        """How long after its own time a stamp may lie: the first one and it are rounded to ``unit``.

        Formats that count in frames round nothing: it stays below a frame.
        """
        return min(self.unit, (self.stop - self.start) / len(self.times) / 4)


def probe(video: VideoSource) -> Track:
    """Look at a video: all of its packets, and its first picture.

    Raises:
        InputError: it cannot be read; the message stands after the file's name.
    """
    with _stream(video) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        if stream.frames > len(packets) or any(packet.is_corrupt for packet in packets):
            raise InputError(f"is damaged: {len(packets)} of its {stream.frames or 'many'} frames are there")
        stamps = [(p.pts, p.duration or 0) for p in packets if not p.is_discard]
        unit, pixel = fraction(stream.time_base), fraction(stream.sample_aspect_ratio or 1)
    if not stamps:
        raise InputError("holds no pictures")
    first = next(decoded(video), None)
    if first is None:
        raise InputError("is damaged: its first picture cannot be decoded")
    if any(pts is None for pts, _ in stamps):
        times = tuple(time for time, _ in decoded(video))
        last = Fraction(0)
    else:
        stamps.sort()
        times = tuple(dict.fromkeys(pts * unit for pts, _ in stamps))
        last = stamps[-1][1] * unit
    if last <= 0:
        last = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else Fraction(1, 25)
    size = shown_size(first[1], pixel)
    turns = _turns(first[1])
    return Track(times=times, stop=times[-1] + last, size=size, pixel=pixel, unit=unit, turns=turns)


def decoded(video: VideoSource, start: Fraction | None = None) -> Iterator[tuple[Fraction, Any]]:
    """Frames of PyAV with their times, from the last one at or before ``start``, or some before it.

    Raises:
        InputError: damage, when it is reached; the message stands after the file's name.
    """
    if start is not None:
        found = _decoded(video, start)
        first = next(found, None)
        if first is not None and first[0] <= start:
            yield first
            yield from found
            return
        found.close()  # formats without an index may land after what was sought
    yield from _decoded(video, None)


def _decoded(video: VideoSource, start: Fraction | None) -> Generator[tuple[Fraction, Any], None, None]:
    import av

    with _stream(video) as (container, stream):
        unit, rate = fraction(stream.time_base), fraction(stream.average_rate or stream.guessed_rate or 25)
        if start is not None:
            try:
                container.seek(int(start / unit), stream=stream)
            except (av.FFmpegError, OSError):
                return
        time: Fraction | None = None
        for frame in container.decode(stream):
            if frame.pts is not None:
                time = frame.pts * unit
            elif start is not None:
                return  # after a jump there is nothing to count from
            else:
                time = Fraction(0) if time is None else time + 1 / rate
            yield time, frame


@contextmanager
def opened(video: VideoSource) -> Iterator[str | io.RawIOBase]:
    """What PyAV can open: the path, or the part of a shard as a file."""
    if video.size is None:
        yield str(video.path)
        return
    with video.path.open("rb") as file, _Part(file, video.offset, video.size) as part:
        yield part


@contextmanager
def _stream(video: VideoSource) -> Iterator[tuple[Any, Any]]:
    """An open file and its first video stream."""
    with container_of(video) as container:
        moving = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not moving:
            raise InputError("holds no pictures")
        yield container, moving[0]


@contextmanager
def container_of(video: VideoSource) -> Iterator[Any]:
    """An open file of PyAV; its errors become ours. Raises InputError: stands after the file's name."""
    import av

    try:
        with opened(video) as file, av.open(file, metadata_errors="replace") as container:
            yield container
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"cannot be read ({reason})") from error


def _is_cover(stream: Any) -> bool:
    """Whether it is a picture that goes with the sound, as in a song's file."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def fraction(value: Any) -> Fraction:
    """Of PyAV's own rationals too."""
    return Fraction(value.numerator, value.denominator)


def exact(seconds: float) -> Fraction:
    """A time that a user gives, to the microsecond. Raises InputError: it is not finite."""
    if not math.isfinite(seconds):
        raise InputError(f"{seconds:g} seconds: give a finite time")
    return Fraction(seconds).limit_denominator(10**6)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors in reading a user's file, with its name and a remedy."""
    if path.is_dir():
        raise InputError(f"video '{path}' is a folder: give a video file")
    if not path.is_file():
        raise InputError(f"video '{path}' does not exist: check the path")
    try:
        yield
    except InputError as error:
        joint = ";" if ":" in str(error) else ":"
        raise InputError(f"video '{path}' {error}{joint} give another video") from error


def resample(
    timed: Iterable[tuple[Fraction, Item]], fps: Fraction, start: Fraction, count: int
) -> Iterator[Item]:
    """``count`` items at ``start``, ``start`` + 1 / ``fps`` ...: each the last one at or before its time.

    Times ascend, at any distance from each other. What would lie before the first item is the first one,
    after the last the last one; of no items there is nothing.
    """
    due, held = 0, None
    for time, item in timed:
        while held is not None and due < count and start + due / fps < time:
            yield held[0]
            due += 1
        if due == count:
            return
        held = (item,)
    while held is not None and due < count:
        yield held[0]
        due += 1


def shown_size(frame: Any, pixel: Fraction) -> Size:
    """(height, width) of a frame of PyAV as it is shown; see `Track` for ``pixel``."""
    height, width = frame.height, _square(frame, pixel)
    return (width, height) if _turns(frame) % 2 else (height, width)


def picture(frame: Any, pixel: Fraction, size: Size) -> np.ndarray:
    """A frame of PyAV as it is shown, cropped to the shape of ``size`` and resized: uint8 (H, W, 3)."""
    turns, width = _turns(frame), _square(frame, pixel)
    if width != frame.width:
        frame = frame.reformat(width=width, height=frame.height, format="rgb24")
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), turns)
    return np.asarray(to_bucket(Image.fromarray(np.ascontiguousarray(pixels)), size))


def _square(frame: Any, pixel: Fraction) -> int:
    """The width of a frame once its pixels are square."""
    return max(1, round(frame.width * pixel))


def _turns(frame: Any) -> int:
    """Quarter turns counter-clockwise that make a frame upright."""
    return round(frame.rotation / 90) % 4


class _Part(io.RawIOBase):
    """Some bytes of an open file, as a file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._offset + self._at)
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(content)
        return content
