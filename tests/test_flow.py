"""Optical flow: of known motions, and less or more of it under planted changes."""

from __future__ import annotations

import numpy as np
import pytest

from framepack.errors import InputError
from framepack.metrics.flow import flow_speed, warping_error
from real_clips import real_clip


def panned(pixels: int, frames: int = 6, size: int = 128) -> np.ndarray:
    """A real picture that moves by so many pixels a frame."""
    still = real_clip("bikes", 0, 1)[0]
    return np.stack([still[:size, 60 + pixels * n : 60 + pixels * n + size] for n in range(frames)])


@pytest.mark.parametrize("pixels", [1, 3, 6])
def test_the_speed_of_a_pan_is_found(pixels: int):
    """In % of a width of 128 px, at 8 frames a second."""
    found = flow_speed(panned(pixels), 8)
    assert found.shape == (5,)
    assert found == pytest.approx(100 * 8 * pixels / 128, rel=0.12)


def test_a_pan_is_explained_by_its_motion_and_a_cut_is_not():
    pan = panned(3)
    assert warping_error(pan).max() < 1.5
    other = real_clip("bigbuckbunny", 0, 1)[0][:128, :128]
    assert warping_error(np.stack([pan[0], other]))[0] > 20


def test_still_frames_have_neither_motion_nor_error():
    still = np.repeat(panned(0)[:1], 4, axis=0)
    assert np.all(flow_speed(still, 25) == 0) and np.all(warping_error(still) == 0)


def test_freezing_ever_more_of_a_clip_lowers_its_motion():
    clip = real_clip("bikes", 100, 24)[:, 60:188, 200:328]
    found = []
    for share in (0.0, 0.25, 0.5, 0.75):
        moving = round(len(clip) * (1 - share))
        frozen = np.concatenate([clip[:moving], np.repeat(clip[moving - 1 : moving], len(clip) - moving, 0)])
        found.append(flow_speed(frozen, 25).mean())
    assert np.all(np.diff(found) < -0.5), found


def test_shuffling_ever_more_frames_raises_the_warping_error():
    clip = real_clip("bikes", 100, 24)[:, 60:188, 200:328]
    found = []
    for reach in (1, 3, 6, 24):
        rng = np.random.default_rng(0)
        order = np.concatenate([at + rng.permutation(reach) for at in range(0, len(clip), reach)])
        found.append(warping_error(clip[order]).mean())
    assert np.all(np.diff(found) > 0.2), found


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (3, 16, 64, 3)])
def test_too_few_or_too_small_frames_are_refused(shape: tuple[int, ...]):
    for metric in (warping_error, lambda frames: flow_speed(frames, 8)):
        with pytest.raises(InputError, match="optical flow needs"):
            metric(np.zeros(shape, np.uint8))
