"""Cuts between scenes, by PySceneDetect where it is installed."""

from __future__ import annotations

import importlib.util
from bisect import bisect_left
from fractions import Fraction

from framepack.errors import InputError
from framepack.video.reading import Track, VideoSource, opened


def require_scenes() -> None:
    """Raises InputError: PySceneDetect, or the OpenCV it needs, is not installed."""
    if importlib.util.find_spec("scenedetect") is None or importlib.util.find_spec("cv2") is None:
        raise InputError(
            "cutting by scenes needs PySceneDetect, which is not installed: "
            "pip install 'framepack-ai[data]', or leave the option out"
        )


def cuts_of(video: VideoSource, track: Track) -> tuple[Fraction, ...]:
    """Times at which another scene begins, each that of a frame.

    Raises:
        InputError: PySceneDetect cannot read the file; the message stands after the file's name.
    """
    from scenedetect import ContentDetector, SceneManager
    from scenedetect.backends import VideoStreamAv
    from scenedetect.video_stream import VideoOpenFailure

    manager = SceneManager()
    manager.add_detector(ContentDetector())
    try:
        with opened(video) as file:
            manager.detect_scenes(VideoStreamAv(file, suppress_output=True))
    except (VideoOpenFailure, OSError, ValueError) as error:
        raise InputError(f"cannot be searched for scenes ({error})") from error
    cuts = []
    for begin, _ in manager.get_scene_list()[1:]:
        # Its times are floats, and count from the first frame on.
        nearest = bisect_left(track.times, track.start + Fraction(begin.seconds) - Fraction(1, 1000))
        if 0 < nearest < len(track.times):
            cuts.append(track.times[nearest])
    return tuple(cuts)
