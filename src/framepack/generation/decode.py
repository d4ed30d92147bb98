"""Latents of a timeline -> frames, in order of time, a few at a time.

Legend: C latent channels, N latents fetched together, h w latent grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from framepack.codecs.streaming import Codec, restart, stream_decoder, together
from framepack.planning.timeline import Timeline

Fetch = Callable[[Sequence[int]], torch.Tensor]
"""Timeline indices -> latents (1, C, N, h, w), any device."""


class Previewer(Protocol):
    """A codec that can show a latent without decoding it."""

    def preview(self, latents: torch.Tensor) -> torch.Tensor: ...


class FrameDecoder:
    """The frames of one video as its latents become known; memory does not grow with the video.

    Args:
        skip: frames at the beginning that are not wanted, such as those that a run wrote before it was
            killed. Of their latents only those are decoded that later frames need.

    Attributes:
        frame: the next frame to come. known: the next latent to be fetched.
        decoded: latents that went through the codec's network, counted as ``StreamingDecoder`` does.
    """

    def __init__(self, codec: Codec, fetch: Fetch, timeline: Timeline, skip: int = 0) -> None:
        self._codec, self._fetch, self._timeline = codec, fetch, timeline
        self._clips = timeline.clips()
        self._decoder = stream_decoder(codec)
        self._before = 0  # latents decoded in earlier clips
        self._dropped = 0  # frames still to be dropped: those that follow needed their latents
        self.frame, self.known = skip, timeline.latent_frames
        if skip < timeline.frames:
            latent = timeline.latent_of(skip)
            self._begin(next(clip for clip in self._clips if latent in clip))
            inside = skip - timeline.frames_of(self._clip.start).start
            ahead = restart(codec, inside)
            self.known += ahead
            self._dropped = inside - ahead * timeline.stride

    @property
    def decoded(self) -> int:
        return self._before + self._decoder.decoded

    def advance(self, known: int) -> Iterator[np.ndarray]:
        """Yield the frames, uint8 (H, W, 3), that are certain once all latents before ``known`` are there.

        With all latents known these are all frames still to come. ``fetch`` is asked for each latent once.
        One call's frames are to be taken before the next call.
        """
        count = together(self._timeline.stride)
        while self.known < min(known, self._timeline.latent_frames):
            indices = range(self.known, min(self.known + count, known, self._clip.stop))
            with torch.inference_mode():
                pixels = self._decoder.push(self._fetch(indices))
            self.known = indices.stop
            yield from self._show(pixels)
            if self.known == self._clip.stop:
                with torch.inference_mode():
                    pixels = self._decoder.finish()
                yield from self._show(pixels)
                clip = next(self._clips, None)
                if clip is not None:
                    self._begin(clip)

    def _begin(self, clip: range) -> None:
        self._before = self.decoded
        self._clip, self._decoder = clip, stream_decoder(self._codec)
        self.known = clip.start

    def _show(self, pixels: torch.Tensor) -> Iterator[np.ndarray]:
        cut = min(self._dropped, pixels.shape[2])
        self._dropped -= cut
        for frame in to_uint8(pixels[0, :, cut:]).cpu().numpy()[: self._timeline.frames - self.frame]:
            self.frame += 1
            yield frame


def decode_frames(codec: Codec, fetch: Fetch, timeline: Timeline, skip: int = 0) -> Iterator[np.ndarray]:
    """Yield exactly the ``timeline.frames`` frames of a video whose latents are all known, less the first
    ``skip``; uint8 (H, W, 3)."""
    decoder = FrameDecoder(codec, fetch, timeline, skip)
    yield from decoder.advance(timeline.latent_frames)
    assert decoder.frame == timeline.frames, (
        f"the codec gave {timeline.frames - decoder.frame} frames too few"
    )


@torch.inference_mode()
def preview(codec: Previewer, fetch: Fetch, frames: Sequence[int]) -> np.ndarray:
    """A rough picture of the middle one of ``frames``, uint8 (H, W, 3); much cheaper than decoding."""
    middle = frames[len(frames) // 2]
    return to_uint8(codec.preview(fetch([middle]))[0]).cpu().numpy()[0]


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """(3, N, H, W) in [-1, 1] -> (N, H, W, 3) uint8."""
    return (
        ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()
    )
