"""The sound of clips, placed in a video: copied packet by packet where an MP4 can hold it, else as AAC.

Times are exact, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from framepack.video.reading import VideoSource, container_of, exact, fraction, named

HELD = ("aac", "mp3", "ac3", "eac3", "alac", "flac", "opus")
"""Codecs that players expect inside an MP4; FFmpeg would write more."""
BIT_RATE = 192_000
JITTER = Fraction(1, 50)
"""Gaps below it between decoded pieces are rounding, and are closed."""


@dataclass(frozen=True, kw_only=True)
class Audio:
    """The sound of a span of a file, and its place in a video.

    Attributes:
        start, stop: of the span, on the file's clock. at: where in the video ``start`` falls.
        tracks: how many the file has; the one that players choose is taken.
        codec, rate, channels, parameters: how it is encoded.
    """

    path: Path
    start: Fraction
    stop: Fraction | None
    at: Fraction
    tracks: int
    codec: str
    rate: int
    channels: int
    parameters: bytes

    @property
    def encoding(self) -> tuple[str, int, int, bytes]:
        return self.codec, self.rate, self.channels, self.parameters


def audio_of(
    path: str | Path, *, start: float = 0.0, stop: float | None = None, at: float = 0.0
) -> Audio | None:
    """The sound of a clip, or None where it has none.

    Args:
        start, stop: the span that is used, in seconds from the first picture, as `clips.UserClip` has them.
        at: where in the new video ``start`` falls, in seconds.

    Raises:
        InputError: missing, or no file of sound and pictures.
    """
    path = Path(path)
    with named(path), container_of(VideoSource(path=path)) as container:
        sound = container.streams.best("audio")
        if sound is None:
            return None
        first = container.streams.best("video") or sound
        origin = (first.start_time or 0) * fraction(first.time_base)
        context = sound.codec_context
        return Audio(
            path=path,
            start=origin + exact(start),
            stop=None if stop is None else origin + exact(stop),
            at=exact(at),
            tracks=len(container.streams.audio),
            codec=context.codec.canonical_name,
            rate=context.sample_rate,
            channels=context.layout.nb_channels,
            parameters=bytes(context.extradata or b""),
        )


def audio_remarks(audios: Sequence[Audio]) -> list[str]:
    """What is changed in sounds that go into one video, one line each."""
    told = [
        f"'{audio.path.name}' has {audio.tracks} sound tracks: one is kept"
        for audio in audios
        if audio.tracks > 1
    ]
    odd = [audio for audio in audios if audio.codec not in HELD]
    told += [f"the sound of '{a.path.name}' is {a.codec}, not for MP4: it is encoded as AAC" for a in odd]
    if audios and not odd and not _alike(audios):
        told.append("the clips' sounds differ in codec, rate or channels: they are encoded as one in AAC")
    return told


def add_audio(container: Any, audios: Sequence[Audio], length: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Add one track for ``audios``, and give its packets, each with its time in the video.

    Sounds are copied where they are all of one encoding that an MP4 can hold. Otherwise they are decoded,
    laid on silence, and encoded as AAC. None lies beyond ``length``.
    """
    assert audios
    audios = sorted(audios, key=lambda audio: audio.at)
    if audios[0].codec in HELD and _alike(audios):
        with container_of(VideoSource(path=audios[0].path)) as source:
            stream = container.add_stream_from_template(source.streams.best("audio"))
        return _copied(stream, audios, length)
    rate = 48_000 if any(audio.rate > 44_100 for audio in audios) else 44_100
    stream = container.add_stream("aac", rate=rate, layout="mono" if _all_mono(audios) else "stereo")
    stream.bit_rate = BIT_RATE
    return _encoded(stream, audios, length)


def _alike(audios: Sequence[Audio]) -> bool:
    return len({audio.encoding for audio in audios}) == 1


def _all_mono(audios: Sequence[Audio]) -> bool:
    return all(audio.channels == 1 for audio in audios)


@contextmanager
def _track(audio: Audio) -> Iterator[tuple[Any, Any]]:
    with named(audio.path), container_of(VideoSource(path=audio.path)) as container:
        yield container, container.streams.best("audio")


def _copied(stream: Any, audios: Sequence[Audio], length: Fraction) -> Iterator[tuple[Fraction, Any]]:
    unit, after = Fraction(1, audios[0].rate), -length
    for audio in audios:
        with _track(audio) as (container, source):
            ticks = fraction(source.time_base)
            for packet in container.demux(source):
                if packet.pts is None:
                    continue  # the mark of the end
                begin, lasts = packet.pts * ticks, packet.duration * ticks
                time = begin - audio.start + audio.at
                # Of what lies before the span, the packet that leads in: decoders of lapped codecs need it.
                if begin + lasts + 2 * ticks < audio.start or time < after:
                    continue
                if (audio.stop is not None and begin + lasts / 2 >= audio.stop) or time + lasts > length:
                    break
                after = time + lasts / 2
                packet.stream, packet.time_base = stream, unit
                packet.pts = packet.dts = round(time / unit)
                packet.duration = round(lasts / unit)
                yield time, packet


def _encoded(stream: Any, audios: Sequence[Audio], length: Fraction) -> Iterator[tuple[Fraction, Any]]:
    import av

    rate, layout, done = stream.rate, stream.layout.name, 0
    for block in _on_silence(audios, rate, layout, length):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, done, Fraction(1, rate)
        done += block.shape[1]
        for packet in stream.encode(frame):
            yield packet.pts * fraction(packet.time_base), packet
    for packet in stream.encode(None):
        yield packet.pts * fraction(packet.time_base), packet


def _on_silence(audios: Sequence[Audio], rate: int, layout: str, length: Fraction) -> Iterator[np.ndarray]:
    """Float samples (channels, n) of the video from its start on, in pieces of at most a second."""
    channels, done = 1 if layout == "mono" else 2, 0
    for audio in audios:
        stop = length if audio.stop is None else min(length, audio.at + audio.stop - audio.start)
        first, last, follows = round(audio.at * rate), round(stop * rate), False
        for time, block in _decoded(audio, rate, layout):
            begin = round(time * rate)
            if follows and abs(begin - done) < JITTER * rate:
                begin = done
            skipped = max(0, max(first, done) - begin)
            block, begin = block[:, skipped : max(skipped, last - begin)], begin + skipped
            if not block.shape[1]:
                continue
            while done < begin:
                silence = min(rate, begin - done)
                yield np.zeros((channels, silence), np.float32)
                done += silence
            yield block
            done += block.shape[1]
            follows = True


def _decoded(audio: Audio, rate: int, layout: str) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Samples (channels, n) with their times in the video, from the first that is needed to the last."""
    import av

    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    with _track(audio) as (container, source):
        for frame in container.decode(source):
            if frame.pts is None:
                continue
            begin = frame.pts * fraction(frame.time_base)
            if audio.stop is not None and begin >= audio.stop:
                return
            if begin + Fraction(frame.samples, frame.sample_rate) <= audio.start:
                continue
            for piece in resampler.resample(frame):
                time = piece.pts * fraction(piece.time_base)
                yield time - audio.start + audio.at, piece.to_ndarray()
