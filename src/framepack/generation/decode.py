"""Latents of a finished run -> frames, each latent decoded once, in order of time.

Legend: C latent channels, N latents decoded together, h w latent grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from framepack.planning.timeline import Timeline

CHUNK = 8
"""Latents decoded together by a codec that knows no time, and frames rounded together."""


class Decoder(Protocol):
    """What decoding asks of a codec: latents (1, C, N, h, w), on any device, to (1, 3, frames, H, W)."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


class Previewer(Protocol):
    """A codec that can show a latent without decoding it."""

    def preview(self, latents: torch.Tensor) -> torch.Tensor: ...


def decode_frames(
    codec: Decoder,
    fetch: Callable[[Sequence[int]], torch.Tensor],
    timeline: Timeline,
) -> Iterator[np.ndarray]:
    """Yield exactly ``timeline.frames`` frames, uint8 (H, W, 3).

    Args:
        fetch: timeline indices -> latents (1, C, N, h, w), any device.
    """
    left = timeline.frames
    for indices in _together(timeline):
        with torch.inference_mode():
            pixels = codec.decode(fetch(indices))[0]
        # Rounded a few at a time: all of a clip in float32 would take as much again, several times.
        for part in pixels.split(CHUNK, dim=1):
            frames = to_uint8(part).cpu().numpy()
            yield from frames[:left]
            left = max(0, left - len(frames))
    assert not left, f"the codec gave {left} frames too few"


def _together(timeline: Timeline) -> Iterator[range]:
    """Latent frames for one call of the codec; one with a temporal stride has to see a whole clip."""
    for clip in timeline.clips():
        size = CHUNK if timeline.stride == 1 else len(clip)
        for start in range(clip.start, clip.stop, size):
            yield range(start, min(start + size, clip.stop))


@torch.inference_mode()
def preview(
    codec: Previewer, fetch: Callable[[Sequence[int]], torch.Tensor], frames: Sequence[int]
) -> np.ndarray:
    """A rough picture of the middle one of ``frames``, uint8 (H, W, 3); much cheaper than decoding."""
    middle = frames[len(frames) // 2]
    return to_uint8(codec.preview(fetch([middle]))[0]).cpu().numpy()[0]


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """(3, N, H, W) in [-1, 1] -> (N, H, W, 3) uint8."""
    return (
        ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()
    )
