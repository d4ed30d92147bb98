"""The tracker agrees with the truth of rendered scenes."""

import dataclasses

import numpy as np
import pytest

from framepack.data.world import sample_scene
from framepack.errors import InputError, UnknownNameError
from framepack.metrics.motion import direction, track


def single_motion(rng):
    scene = sample_scene(rng, 2)
    return dataclasses.replace(scene, motions=scene.motions[:1])


@pytest.mark.parametrize("size", [64, 128])
def test_directions_of_random_scenes(size):
    rng = np.random.default_rng(size)
    right = 0
    for _ in range(100):
        scene = single_motion(rng)
        start = int(rng.integers(-40, 40))
        right += (
            direction(scene.render(range(start, start + 24), size, size), scene.colour)
            == scene.motions[0].direction
        )
    assert right >= 98


@pytest.mark.parametrize("size", [64, 128])
def test_positions_where_the_shape_is_whole(size):
    rng = np.random.default_rng(1)
    for _ in range(30):
        scene = single_motion(rng)
        followed = track(scene.render(range(0, 24, 3), size, size), scene.colour)
        for n, t in enumerate(range(0, 24, 3)):
            if followed.cut[n].any() or not followed.seen[n]:
                continue
            assert np.abs(followed.positions[n] - scene.position(t)).max() < 0.05
        whole = followed.seen & ~followed.cut.any(axis=1)
        offsets = (followed.positions - [scene.position(t) for t in range(0, 24, 3)])[whole]
        assert not len(offsets) or np.ptp(offsets, axis=0).max() < 1.0 / size


def test_noise_and_blur_do_not_mislead():
    rng = np.random.default_rng(2)
    right = 0
    for _ in range(50):
        scene = single_motion(rng)
        frames = scene.render(range(24), 64, 64).astype(float)
        frames = 0.5 * frames + 0.25 * (np.roll(frames, 1, 1) + np.roll(frames, 1, 2))
        frames = np.clip(frames + rng.normal(0, 5, frames.shape), 0, 255).astype(np.uint8)
        right += direction(frames, scene.colour) == scene.motions[0].direction
    assert right >= 48


def test_nothing_to_see_has_no_direction():
    assert direction(np.zeros((8, 64, 64, 3), np.uint8), "red") is None
    assert direction(np.zeros((0, 64, 64, 3), np.uint8), (255, 0, 0)) is None


def test_bad_arguments_are_named():
    with pytest.raises(UnknownNameError, match="mauve"):
        track(np.zeros((2, 8, 8, 3), np.uint8), "mauve")
    with pytest.raises(InputError, match="frames, height, width, 3"):
        track(np.zeros((8, 8, 3), np.uint8), "red")
