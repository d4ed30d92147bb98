"""The one place that converts between seconds, frames and latent frames.

A causal video codec of temporal stride s keeps the first frame on its own and packs every further s frames
into one latent frame, so n frames need 1 + ceil((n - 1) / s) latent frames. A request for n frames gives
exactly n: what the last latent frame decodes to beyond them is trimmed, always less than one latent frame.

Some models give their codec a few latent frames at a time, each time as a video of its own (Helios: 9 latent
frames, 33 frames). Such a video is a row of clips: the first latent frame of each is one frame, and a start
picture is a clip by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from framepack.errors import InputError

MAX_SECONDS = 24 * 3600.0
MAX_FRAMES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The latent frames of one video, some of them known before anything is generated.

    frames: frames of the finished video.
    fps: frames per second.
    stride: frames per latent frame of the codec (4 for HunyuanVideo and Wan, 1 for a per-frame codec).
    known: latent indices already filled: 0 for a start image, -1 (kept as the last index) for an end
        keyframe, any other for a keyframe or a clip to extend. Stored sorted and without repeats.
    clip: latent frames that the codec takes as a video of their own; None: all of them are one video.

    Raises:
        InputError: a count, rate or index that is out of range, or known frames that clips have no place for.
    """

    frames: int
    fps: float
    stride: int
    known: tuple[int, ...] = ()
    clip: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= MAX_FRAMES:
            raise InputError(f"{self.frames} frames: ask for 1 to {MAX_FRAMES:,}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"{self.fps:g} frames per second: the rate must be above 0")
        if self.stride < 1:
            raise InputError(f"temporal stride {self.stride}: it must be at least 1")
        if self.clip is not None and self.clip < 1:
            raise InputError(f"clips of {self.clip} latent frames: they must have at least 1")
        if self.clip is not None and not set(self.known) <= {0}:
            raise InputError(
                f"known latent frames {self.known}: a model whose codec takes a section at a time can have a "
                "start picture (0) and no others"
            )
        length = self.latent_frames
        for index in self.known:
            if not -length <= index < length:
                raise InputError(f"known latent frame {index}: this video has 0 to {length - 1}")
        known = tuple(sorted({index % length for index in self.known}))
        object.__setattr__(self, "known", known)

    @classmethod
    def from_seconds(
        cls,
        seconds: float,
        *,
        fps: float,
        stride: int,
        known: tuple[int, ...] = (),
        clip: int | None = None,
    ) -> Timeline:
        """The timeline of round(seconds * fps) frames, at least one.

        Raises:
            InputError: seconds not above 0, or more than a day.
        """
        if not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
            raise InputError(f"{seconds:g} seconds: ask for more than 0 and at most {MAX_SECONDS:,.0f}")
        if not (math.isfinite(fps) and fps > 0):
            raise InputError(f"{fps:g} frames per second: the rate must be above 0")
        # Half up: the banker's rounding of round() would make 0.5 s at 1 fps nothing.
        frames = max(1, math.floor(seconds * fps + 0.5))
        return cls(frames=frames, fps=fps, stride=stride, known=known, clip=clip)

    @property
    def latent_frames(self) -> int:
        whole, left = divmod(self.frames - self._alone, self._clip_frames)
        return self._alone + whole * (self.clip or 0) + (1 + -(-(left - 1) // self.stride) if left else 0)

    @property
    def padded_frames(self) -> int:
        """Frames that the latent frames decode to, before trimming."""
        return sum(1 + (len(clip) - 1) * self.stride for clip in self.clips())

    def clips(self) -> Iterator[range]:
        """The latent frames that are decoded together, in order of time."""
        length = self.latent_frames
        if self._alone:
            yield range(1)
        for start in range(self._alone, length, self.clip or length):
            yield range(start, min(start + (self.clip or length), length))

    @property
    def _alone(self) -> int:
        """Latent frames before the first clip: a start picture."""
        return int(self.clip is not None and 0 in self.known)

    @property
    def _clip_frames(self) -> int:
        """Frames of a whole clip; more than any video has where there is only one."""
        return MAX_FRAMES + 1 if self.clip is None else 1 + (self.clip - 1) * self.stride

    @property
    def trimmed_frames(self) -> int:
        """Decoded frames cut off at the end; less than one latent frame."""
        return self.padded_frames - self.frames

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    def frames_of(self, latent: int) -> range:
        """Frames of the finished video that latent frame ``latent`` decodes to.

        Raises:
            InputError: an index outside the video.
        """
        if not 0 <= latent < self.latent_frames:
            raise InputError(f"latent frame {latent}: this video has 0 to {self.latent_frames - 1}")
        if latent < self._alone:
            return range(1)
        clip, at = divmod(latent - self._alone, self.clip or self.latent_frames)
        first = self._alone + clip * self._clip_frames
        if at == 0:
            return range(first, first + 1)
        first += 1 + (at - 1) * self.stride
        return range(first, min(first + self.stride, self.frames))

    def latent_of(self, frame: int) -> int:
        """The latent frame that decodes to ``frame``. Raises InputError outside the video."""
        if not 0 <= frame < self.frames:
            raise InputError(f"frame {frame}: this video has 0 to {self.frames - 1}")
        if frame < self._alone:
            return 0
        clip, at = divmod(frame - self._alone, self._clip_frames)
        return self._alone + clip * (self.clip or 0) + -(-at // self.stride)
