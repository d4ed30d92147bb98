"""Clips: spans of videos at a model's rate, each long enough for a section, each of one bucket."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from framepack.data.scenes import cuts_of, require_scenes
from framepack.data.videos import Found, Rejected, Video
from framepack.errors import InputError
from framepack.models.spec import ModelSpec
from framepack.video.buckets import UNIT, bucket_set
from framepack.video.clips import Excerpt
from framepack.video.reading import Track, probe
from framepack.video.resize import Size, nearest_bucket

SECONDS = 10.0
"""Longest clip where nothing is said: it and its pixels are in memory at once."""
SHORTAGE = 0.75
"""A video with fewer than this share of the model's frames per second is remarked upon."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How clips are made of videos, by what a model needs.

    Args:
        fps: the model's rate. stride: frames of a latent after the first.
        shortest, longest: frames of a clip, each one and a multiple of ``stride`` more.
        buckets: (height, width) in px.
        scenes: cut where PySceneDetect finds another scene.

    Raises:
        InputError: ``longest`` is below ``shortest``, or PySceneDetect is wanted and absent.
    """

    fps: float
    stride: int
    shortest: int
    longest: int
    buckets: tuple[Size, ...]
    scenes: bool = False

    def __post_init__(self) -> None:
        if self.longest < self.shortest:
            raise InputError(
                f"clips of at most {self.longest} frames: a section with its start frame needs "
                f"{self.shortest} ({self.shortest / self.fps:.2g} s at {self.fps:g} fps); allow longer ones"
            )
        if self.scenes:
            require_scenes()

    @property
    def rate(self) -> Fraction:
        return Fraction(self.fps).limit_denominator(1001)

    def fitted(self, frames: int) -> int:
        """At most ``frames`` frames, as many as the codec takes."""
        return (frames - 1) // self.stride * self.stride + 1


def cutting_for(
    spec: ModelSpec, *, area: int | None = None, seconds: float = SECONDS, scenes: bool = False
) -> Cutting:
    """How clips are made for a model: a section of its longest method, and a start frame before it, fit in.

    Args:
        area: of the buckets in px, by rule; the model's own buckets where left out.
        seconds: longest clip.

    Raises:
        InputError: an area or a length that makes no clips, or a model whose codec takes sections alone.
    """
    if spec.decode != "continuous":
        raise InputError(
            f"model '{spec.name}' has each section encoded by itself: clips are made for models whose codec "
            "takes a video as a whole; choose another"
        )
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"clips of at most {seconds:g} seconds: give a length above 0")
    section = max(method.section_size for method in spec.methods.values())
    fitting = [UNIT, *(spec.spatial_stride * side for side in spec.base_kernel[1:])]
    buckets = spec.buckets if area is None else bucket_set(area, math.lcm(*fitting))
    stride = spec.temporal_stride
    return Cutting(
        fps=spec.fps,
        stride=stride,
        shortest=section * stride + 1,
        longest=max(0, math.floor(seconds * spec.fps) - 1) // stride * stride + 1,
        buckets=buckets,
        scenes=scenes,
    )


@dataclass(frozen=True, kw_only=True)
class Clip(Excerpt):
    """A span of a video that somebody offers for training."""

    video: Video


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a place gives, in the order of names and times.

    Attributes:
        videos: those that can be read. remarks: what is used and might be better, one line each.
    """

    videos: tuple[Video, ...]
    clips: tuple[Clip, ...]
    rejected: tuple[Rejected, ...]
    remarks: tuple[str, ...]


def survey(
    place: Path,
    found: Found,
    cutting: Cutting,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Cut every video that was found in ``place``.

    Args:
        on_video: told (videos done, all videos).

    Raises:
        InputError: nothing that was found gives a clip.
    """
    readable: list[Video] = []
    clips: list[Clip] = []
    rejected = list(found.rejected)
    counted: Counter[str] = Counter()
    for done, video in enumerate(found.videos, start=1):
        try:
            track = probe(video)
            made, short = cut(video, track, cutting, cuts_of(video, track) if cutting.scenes else ())
        except InputError as error:
            rejected.append(Rejected(video.name, str(error)))
        else:
            readable.append(video)
            clips += made
            rejected += short
            if made:
                counted.update(_remarks(video, track, made[0].bucket, cutting))
        on_video(done, len(found.videos))
    if not clips:
        first = f"; '{rejected[0].name}' {rejected[0].reason}" if rejected else ""
        raise InputError(f"'{place}' gives no clip, {len(rejected)} rejected{first}: give other videos")
    told = tuple(f"{count} of {len(readable)} videos {text}" for text, count in counted.items())
    return Survey(videos=tuple(readable), clips=tuple(clips), rejected=tuple(rejected), remarks=told)


def _remarks(video: Video, track: Track, bucket: Size, cutting: Cutting) -> Iterator[str]:
    if not video.caption:
        yield "have no caption: they are taken with the empty prompt"
    if track.fps < SHORTAGE * cutting.fps:
        yield f"have fewer than the model's {cutting.fps:g} frames per second: theirs are repeated"
    if track.size[0] < bucket[0] or track.size[1] < bucket[1]:
        yield "are smaller than their bucket: they are enlarged"


def cut(
    video: Video, track: Track, cutting: Cutting, cuts: Sequence[Fraction] = ()
) -> tuple[list[Clip], list[Rejected]]:
    """The clips of one video, and the spans between ``cuts`` that are too short for one.

    A span longer than the longest clip is divided into clips of one length.

    Raises:
        InputError: the span that was asked for lies outside the video; stands after the file's name.
    """
    start = track.start if video.start is None else Fraction(video.start).limit_denominator(10**6)
    stop = track.stop if video.stop is None else Fraction(video.stop).limit_denominator(10**6)
    start, stop = max(start, track.start), min(stop, track.stop)
    if start >= stop:
        raise InputError(
            f"ends at {float(track.stop):.2f} s: the span from {video.start or 0:g} s lies outside"
        )
    edges = [start, *(at for at in cuts if start < at < stop), stop]
    clips: list[Clip] = []
    short: list[Rejected] = []
    bucket = nearest_bucket(track.size, cutting.buckets)
    for left, right in pairwise(edges):
        count = math.ceil((right - left) * cutting.rate)
        if count < cutting.shortest:
            short.append(Rejected(video.name, _too_short(left, right, count, cutting, whole=len(edges) == 2)))
            continue
        parts = math.ceil(count / cutting.longest)
        while cutting.fitted(count // parts) < cutting.shortest:
            parts -= 1
        frames = min(cutting.fitted(count // parts), cutting.longest)
        for part in range(parts):
            at = left + part * (count // parts) / cutting.rate
            last = at + (frames - 1) / cutting.rate
            sources = bisect_right(track.times, last) - bisect_left(track.times, at)
            clips.append(
                Clip(
                    video=video,
                    start=at,
                    frames=frames,
                    rate=cutting.rate,
                    sources=sources,
                    bucket=bucket,
                    pixel=track.pixel,
                )
            )
    return clips, short


def _too_short(left: Fraction, right: Fraction, count: int, cutting: Cutting, *, whole: bool) -> str:
    span = "" if whole else f" from {float(left):.2f} to {float(right):.2f} s"
    return (
        f"is too short{span}: {count} frames at {cutting.fps:g} fps, a section with its start frame needs "
        f"{cutting.shortest}"
    )
