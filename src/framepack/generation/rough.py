"""A rough video of what is there so far, for orders in which the finished frames have to wait.

{workdir}/preview.mp4    replaced as the run goes on; gone when the video has its own name
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framepack.generation.decode import Fetch, preview
from framepack.planning.timeline import Timeline
from framepack.video.io import write_video

MOST = 1200
"""Frames it has at most: of a longer video only every second latent frame is shown, or fourth, and so on."""
GROWTH = 1.1
"""By how much the sections have to grow between two writes, so that all of them together cost little."""


class RoughVideo:
    """A codec's rough picture of each latent, in order of time, without those that are still missing.

    Args:
        path: of the video. timeline: of the finished one.
    """

    def __init__(self, path: Path, codec: Any, fetch: Fetch, timeline: Timeline) -> None:
        self.path, self._codec, self._fetch, self._timeline = path, codec, fetch, timeline
        self._pictures: dict[int, np.ndarray] = {}
        self._every = 1
        self._added = self._written = 0

    @property
    def frames(self) -> int:
        return len(self._pictures)

    def add(self, frames: Sequence[int], *, write: bool = True) -> bool:
        """Take the latent frames of a section; whether the video was written anew.

        Args:
            write: false for what was there before the run went on.

        Raises:
            OutputError: it cannot be written.
        """
        length = self._timeline.latent_frames
        for frame in frames:
            if frame < length and frame % self._every == 0:
                self._pictures[frame] = preview(self._codec, self._fetch, [frame])
        while len(self._pictures) > MOST:
            self._every *= 2
            self._pictures = {at: kept for at, kept in self._pictures.items() if at % self._every == 0}
        self._added += 1
        if not write or not self._pictures or self._added < GROWTH * self._written:
            return False
        self._written = self._added
        fps = self._timeline.fps / self._timeline.stride / self._every
        write_video(self.path, (self._pictures[at] for at in sorted(self._pictures)), fps, overwrite=True)
        return True
