"""Clips that a user brings, to be continued or taken keyframes from, at a model's rate and size.

Sizes are (height, width), in px. Times that a user gives are in seconds from a video's first picture.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from framepack.errors import InputError
from framepack.video.images import read_image
from framepack.video.reading import Track, VideoSource, decoded, exact, named, picture, probe, resample
from framepack.video.resize import Size

SLACK = Fraction(1, 10)
"""Share of a frame that a clip's last one may lack: stamps are rounded, durations guessed."""
VARIABLE = 1.5
"""Longest by shortest distance of two frames above which a rate is called variable."""


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A span of a video, at a model's rate and size.

    Attributes:
        start: of its first frame, in seconds of the file's clock. frames: at ``rate`` a second, F.
        sources: frames of the video from there to the time of the last frame.
        bucket: (height, width) of its frames. pixel: width of a stored pixel, in its heights.
    """

    video: VideoSource
    start: Fraction
    frames: int
    rate: Fraction
    sources: int
    bucket: Size
    pixel: Fraction

    @property
    def stop(self) -> Fraction:
        return self.start + self.frames / self.rate

    @property
    def seconds(self) -> float:
        return float(self.frames / self.rate)


def read_frames(excerpt: Excerpt) -> Iterator[np.ndarray]:
    """The excerpt's frames, uint8 (H, W, 3) each; only those at hand are in memory.

    Raises:
        InputError: damage, when it is reached; the message stands after the file's name.
    """
    seen = 0

    def watched() -> Iterator[tuple[Fraction, Any]]:
        nonlocal seen
        for time, frame in decoded(excerpt.video, excerpt.start):
            if time >= excerpt.stop:
                return
            if time >= excerpt.start:
                seen += 1
                if frame.is_corrupt:
                    raise InputError(f"is damaged at {float(time):.2f} s")
            yield time, frame

    last: tuple[Any, np.ndarray] | None = None
    for frame in resample(watched(), excerpt.rate, excerpt.start, excerpt.frames):
        if last is None or last[0] is not frame:
            last = frame, picture(frame, excerpt.pixel, excerpt.bucket)
        yield last[1]
    if seen < excerpt.sources:
        raise InputError(
            f"is damaged: from {float(excerpt.start):.2f} to {float(excerpt.stop):.2f} s {seen} of its "
            f"{excerpt.sources} frames can be decoded"
        )


@dataclass(frozen=True, kw_only=True)
class UserClip:
    """A span of a user's video, ready to be read.

    Attributes:
        count: frames that it gives.
        start, stop: of what is taken, in seconds from the video's first picture.
        remarks: what is converted, one line each.
    """

    path: Path
    excerpt: Excerpt
    start: float
    stop: float
    remarks: tuple[str, ...]

    @property
    def count(self) -> int:
        return self.excerpt.frames

    def frames(self) -> Iterator[np.ndarray]:
        """Uint8 (H, W, 3) each, decoded as they are asked for.

        Raises:
            InputError: damage, when it is reached.
        """
        with named(self.path):
            yield from read_frames(self.excerpt)


def track_of(path: str | Path) -> Track:
    """A user's video without its pixels: its times, and its size as it is shown.

    Raises:
        InputError: missing, a folder, empty, not a video, without pictures (sound alone), or damaged.
    """
    path = Path(path)
    with named(path):
        return probe(VideoSource(path=path))


def read_clip(
    path: str | Path,
    fps: float,
    size: Size,
    start: float | None = None,
    stop: float | None = None,
    *,
    stride: int = 1,
    cut: Literal["start", "end"] = "end",
) -> UserClip:
    """A span of a user's video at the model's rate and size.

    Frame k is what is shown ``k / fps`` after ``start``, so a variable rate is followed. It is turned upright
    and given square pixels, then cropped at the centre and resized.

    Args:
        fps, size: the model's.
        start, stop: in seconds from the first picture; the whole video where left out.
        stride: frames of a latent frame after the first. A count that is no whole number of latent frames
            (one and a multiple of ``stride``) is made one by leaving frames out at ``cut``, the end that does
            not touch what is generated.

    Raises:
        InputError: see `track_of`; or a span that is none, or outside the video.
    """
    path, rate = Path(path), Fraction(fps).limit_denominator(1001)
    track = track_of(path)
    length = track.stop - track.start
    begin, end = exact(start or 0.0), length if stop is None else exact(stop)
    if not 0 <= begin < end:
        span = f"{float(begin):g} to {float(end):g} s"
        raise InputError(f"clip '{path}' from {span}: give a start before the stop")
    if begin >= length:
        lasts = f"the video is {float(length):.2f} s long"
        raise InputError(f"clip '{path}' from {float(begin):g} s: {lasts}; give an earlier start")
    end, asked = min(end, length), end
    count = max(1, math.ceil((end - begin) * rate - SLACK))
    left_out = (count - 1) % stride
    if cut == "start":
        begin += left_out / rate
    first = track.start + begin + track.slack
    last = first + (count - left_out - 1) / rate
    excerpt = Excerpt(
        video=VideoSource(path=path),
        start=first,
        frames=count - left_out,
        rate=rate,
        sources=bisect_right(track.times, last) - bisect_left(track.times, first),
        bucket=size,
        pixel=track.pixel,
    )
    remarks = [f"clip '{path.name}' {text}" for text in _conversions(track, fps, size)]
    if asked > length:
        remarks.append(f"clip '{path.name}' ends at {float(length):.2f} s: {float(asked):g} s lies beyond it")
    if left_out:
        edge = "first" if cut == "start" else "last"
        remarks.append(
            f"clip '{path.name}' gives {count} frames at {fps:g} fps: its {edge} {left_out} are left out, "
            f"for whole latent frames of {stride}"
        )
    stops = begin + excerpt.frames / rate
    return UserClip(path=path, excerpt=excerpt, start=float(begin), stop=float(stops), remarks=tuple(remarks))


def read_frame(path: str | Path, seconds: float) -> Image.Image:
    """What a user's video shows at ``seconds``, RGB, upright, with square pixels, at its own size.

    Raises:
        InputError: see `track_of`; or a time outside the video, or damage there.
    """
    path = Path(path)
    track = track_of(path)
    length = float(track.stop - track.start)
    if not 0 <= seconds < length:
        raise InputError(
            f"'{path}' at {seconds:g} s: the video is {length:.2f} s long; give a time within it"
        )
    due = track.start + exact(seconds) + track.slack
    wanted = track.times[bisect_right(track.times, due) - 1]
    with named(path):
        for time, frame in decoded(VideoSource(path=path), due):
            if time == wanted and not frame.is_corrupt:
                return Image.fromarray(picture(frame, track.pixel, track.size))
            if time >= wanted:
                break
        raise InputError(f"is damaged at {seconds:g} s")


def read_still(place: str | Path) -> Image.Image:
    """A picture file, or a frame of a clip as in ``clip.mp4@3.5s``.

    Raises:
        InputError: see `images.read_image` and `read_frame`.
    """
    found = re.fullmatch(r"(.+)@(\d+(?:\.\d*)?|\.\d+)s", str(place))
    if found is None or Path(place).exists():
        return read_image(place)
    return read_frame(found[1], float(found[2]))


def _conversions(track: Track, fps: float, size: Size) -> Iterator[str]:
    """What is done to a video's frames, in words that stand after its name."""
    gaps = [float(later - earlier) for earlier, later in pairwise(track.times)]
    unit = float(track.unit)  # two roundings to it are no change of rate
    if gaps and max(gaps) - unit > VARIABLE * (min(gaps) + unit):
        rates = f"{1 / max(gaps):.3g} to {1 / min(gaps):.3g} fps"
        yield f"has a variable rate, {rates}: its time stamps are followed"
    if abs(track.fps - fps) > 0.01 * fps:
        how = "some are left out" if track.fps > fps else "some are repeated"
        yield f"has {track.fps:.4g} frames per second: read at the model's {fps:g}, {how}"
    if track.turns:
        yield "is stored turned: it is set upright"
    if track.pixel != 1:
        yield "has pixels that are not square: they are made so"
    (height, width), (new_height, new_width) = track.size, size
    if track.size != size:
        how = "resized" if height * new_width == width * new_height else "cropped at the centre and resized"
        yield f"is {width} x {height}: {how} to {new_width} x {new_height}"
