"""From a growing file to a finished one: the same packets, the index in front, and the sound of clips."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import Any

from framepack.errors import InputError
from framepack.video.audio import Audio, add_audio
from framepack.video.io import describe, taking_name
from framepack.video.reading import fraction


def finalize(
    growing: str | Path,
    out: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    audio: Sequence[Audio] = (),
    overwrite: bool = False,
) -> int:
    """Copy a video into a plain MP4, and return how many frames it has.

    The file takes its name only when complete; until then it is a hidden one beside ``out``.

    Args:
        growing, metadata, audio: see `copy_video`.

    Raises:
        OutputError: the place cannot be written, or is taken and ``overwrite`` is not set.
        InputError: see `copy_video`.
    """
    with taking_name(out, overwrite=overwrite) as part:
        return copy_video(Path(growing), part, metadata, audio)


def copy_video(
    video: Path, path: Path, metadata: Mapping[str, Any] | None = None, audio: Sequence[Audio] = ()
) -> int:
    """Copy the pictures of an MP4 into the very file ``path``, and return how many there were.

    Nothing of the pictures is encoded again. What an error leaves at ``path`` is the caller's to remove.

    Args:
        metadata: of the new file; `io.read_video` gives it back.
        audio: the sound of clips, no two of them at one time; cut where the video ends.

    Raises:
        OSError: ``path`` cannot be written. InputError: ``video`` or a clip is missing, or cannot be read.
    """
    import av

    if not video.is_file():
        raise InputError(f"video '{video}' does not exist: check the path")
    options = {"movflags": "+faststart"}
    count = 0
    with _opened(video) as source, av.open(str(path), "w", format="mp4", options=options) as made:
        describe(made, metadata)
        pictures = source.streams.video[0]
        stream = made.add_stream_from_template(pictures)
        length = pictures.duration * fraction(pictures.time_base)
        timed = [_packets(source, pictures, video)]
        if audio:
            timed.append(add_audio(made, audio, length))
        for _, packet in heapq.merge(*timed, key=itemgetter(0)):
            if packet.stream is pictures:
                packet.stream = stream
                count += 1
            made.mux(packet)
    return count


def _opened(video: Path) -> Any:
    import av

    try:
        return av.open(str(video))
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"video '{video}' is not a video file: give an MP4") from error


def _packets(source: Any, pictures: Any, video: Path) -> Iterator[tuple[Fraction, Any]]:
    import av

    unit = fraction(pictures.time_base)
    try:
        for packet in source.demux(pictures):
            if packet.dts is not None:
                yield packet.dts * unit, packet
    except av.FFmpegError as error:
        raise InputError(f"video '{video}' is damaged: make it again") from error
