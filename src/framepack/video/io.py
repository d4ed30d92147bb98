"""Read and write MP4 files, one frame at a time.

Frames are uint8 arrays (H, W, 3), RGB. Videos are H.264 in yuv420p at CRF 16, tagged BT.709, with
the settings that made them as JSON in the file's comment.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from framepack.errors import InputError, OutputError
from framepack.video.images import read_image

__all__ = ["VideoFile", "check_output", "encode_video", "read_image", "read_video", "write_video"]

CRF = 16
BT709 = 1  # the one number that FFmpeg gives to this matrix, these primaries and this transfer
LIMITED_RANGE = 1
REORDERED = 2
"""Places in the order of decoding that x264's medium preset lets a frame come before it is shown."""


class VideoFile(NamedTuple):
    """An open video: ``frames`` decodes as it is iterated and closes the file at its end."""

    frames: Iterator[np.ndarray]
    fps: float
    metadata: dict[str, Any]


def check_output(path: str | Path, *, overwrite: bool = False, suffix: str = ".mp4") -> Path:
    """Say whether a file could be written at ``path``, leaving nothing behind.

    Raises:
        OutputError: wrong suffix, a folder, a file that exists (unless ``overwrite``), or a place
            that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise OutputError(f"output '{path}' does not end in {suffix}: rename it")
    try:
        if path.is_dir():
            raise OutputError(f"output '{path}' is a folder: give a file name inside it")
        if path.exists() and not overwrite:
            raise OutputError(f"output '{path}' exists: choose another name or pass --overwrite")
        folder = path.absolute().parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise OutputError(f"output '{path}' cannot be written: '{folder}' is not a folder")
        # Permission bits say little (root, read-only mounts): only trying tells.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OutputError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    metadata: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> int:
    """Encode ``frames`` to an MP4 and return how many there were.

    The file takes its name only when complete; until then it is a hidden one beside ``path``.

    Args:
        frames, fps, metadata: see `encode_video`.

    Raises:
        OutputError: the place cannot be written, or is taken and ``overwrite`` is not set.
        InputError: see `encode_video`.
    """
    with taking_name(path, overwrite=overwrite) as part:
        return encode_video(part, frames, fps, metadata)


@contextmanager
def taking_name(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden file beside ``path``, to be written; it takes the name when the block ends without an error.

    Raises:
        OutputError: the place cannot be written, or is taken and ``overwrite`` is not set.
    """
    path = check_output(path, overwrite=overwrite)
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:64]}-", suffix=".part.mp4", dir=path.parent)
        os.close(handle)
        part = Path(name)
        part.chmod(0o666 & ~_umask())  # mkstemp's files are private; videos follow the user's mask
        yield part
        if path.exists() and not overwrite:
            raise OutputError(f"output '{path}' appeared meanwhile: choose another name or pass --overwrite")
        part.replace(path)
    except (OutputError, InputError):
        raise
    except OSError as error:  # PyAV's errors from the file system are OSErrors too
        raise unwritable(path, error) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def encode_video(
    path: Path, frames: Iterable[np.ndarray], fps: float, metadata: Mapping[str, Any] | None = None
) -> int:
    """Encode ``frames`` as they come into the very file ``path``, and return how many there were.

    H.264 in yuv420p needs even sides: an odd one is padded by repeating its last row or column. What an
    error leaves at ``path`` is the caller's to remove.

    Args:
        frames: uint8 (H, W, 3), all of one size.
        fps: frames per second.
        metadata: anything JSON can hold; `read_video` gives it back.

    Raises:
        OSError: the file cannot be written. InputError: there are no frames, or ``fps`` is not positive.
    """
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        describe(container, metadata)
        count = 0
        for packet in encode(container, frames, fps):
            container.mux(packet)
            count += 1
    return count


def describe(container: Any, metadata: Mapping[str, Any] | None) -> None:
    """Enter ``metadata`` into an MP4 that is being written."""
    if metadata is not None:
        container.metadata["comment"] = json.dumps(metadata, ensure_ascii=False, sort_keys=True)


def encode(container: Any, frames: Iterable[np.ndarray], fps: float) -> Iterator[Any]:
    """Add a video stream to ``container`` and encode ``frames`` for it, each to one packet.

    The packets come in the order of decoding, each ``REORDERED`` frames of time before the picture it makes
    possible, so that any number of frames is stamped alike. Nothing refers to frames of another call.

    Raises:
        InputError: there are no frames, or ``fps`` is not positive.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

    if not fps > 0:
        raise InputError(f"{fps} frames per second is not positive: give a rate such as 8 or 30")
    stream: Any = None
    shape: tuple[int, ...] = ()
    sent = 0
    convert = VideoReformatter()  # one for all: each has threads of its own

    def stamped(packets: Iterable[Any]) -> Iterator[Any]:
        nonlocal sent
        for packet in packets:
            packet.dts, packet.duration = sent - REORDERED, 1
            sent += 1
            yield packet

    for count, frame in enumerate(frames):
        assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3, (frame.dtype, frame.shape)
        if stream is None:
            shape = frame.shape
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(CRF), "preset": "medium"}
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
        assert frame.shape == shape, f"frame {count} is {frame.shape}, the first was {shape}"
        if shape[0] % 2 or shape[1] % 2:
            frame = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = convert.reformat(
            picture,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        picture.pts, picture.time_base = count, 1 / stream.codec_context.framerate
        yield from stamped(stream.encode(picture))
    if stream is None:
        raise InputError("a video of no frames cannot be written: give at least one")
    yield from stamped(stream.encode(None))


def read_video(path: str | Path) -> VideoFile:
    """Open a video file; its frames are decoded one by one as they are asked for.

    Raises:
        InputError: missing, or not a video; while iterating: damaged.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise InputError(f"video '{path}' does not exist: check the path")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"video '{path}' is not a video file: give an MP4") from error
    if not container.streams.video:
        container.close()
        raise InputError(f"video '{path}' holds no pictures: give a file with a video track")
    stream = container.streams.video[0]
    try:
        metadata = json.loads(container.metadata.get("comment", ""))
    except ValueError:
        metadata = {}  # a comment of somebody else's
    rate = stream.average_rate or stream.guessed_rate or Fraction(1)
    frames = _decode_frames(container, stream, path)
    return VideoFile(frames, float(rate), metadata if isinstance(metadata, dict) else {})


def _decode_frames(container: Any, stream: Any, path: Path) -> Iterator[np.ndarray]:
    import av
    from av.video.reformatter import VideoReformatter

    convert = VideoReformatter()
    with container:
        try:
            for frame in container.decode(stream):
                yield convert.reformat(frame, format="rgb24").to_ndarray()
        except av.FFmpegError as error:
            raise InputError(f"video '{path}' is damaged: make it again") from error


def unwritable(path: Path | str, error: OSError) -> OutputError:
    """The one line about a place where writing failed."""
    reason = error.strerror or type(error).__name__
    return OutputError(f"output '{path}' cannot be written ({reason}): choose another place")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
