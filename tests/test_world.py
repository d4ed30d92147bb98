"""The flat world: seeded, endless, the same at any size, and truthfully described."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framepack.conditioning.lexicon import parse
from framepack.data.world import FADE, STEP, Motion, sample_scene, visible_colours
from framepack.errors import UnknownNameError

seeds = st.integers(0, 2**31)


def scene_of(seed: int, frames: int = 80, aspect: float = 1.0):
    return sample_scene(np.random.default_rng(seed), frames, aspect)


@settings(max_examples=200, deadline=None)
@given(seed=seeds, start=st.integers(-20, 80), length=st.integers(1, 60))
def test_a_caption_says_exactly_the_words(seed, start, length):
    scene, rng = scene_of(seed), np.random.default_rng(seed)
    for language in ("en", "ja"):
        parsed = parse(scene.caption(start, start + length, language, rng))
        assert parsed.words == scene.words(start, start + length)
        assert parsed.unknown == parsed.surplus == ()


def test_an_unknown_language_lists_the_choices():
    with pytest.raises(UnknownNameError, match="en, ja"):
        scene_of(0).caption(0, 6, "fr", np.random.default_rng(0))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, t=st.integers(-(10**9), 10**9))
def test_frames_depend_on_seed_and_time_alone(seed, t):
    one = scene_of(seed).render([t, t + 1], 32, 32)
    two = scene_of(seed).render([t + 1], 32, 32)
    assert (one[1] == two[0]).all()


@settings(max_examples=100, deadline=None)
@given(seed=seeds, a=st.integers(-500, 500), b=st.integers(-500, 500), c=st.integers(-500, 500))
def test_displacements_add_up_and_positions_follow_them(seed, a, b, c):
    scene = scene_of(seed)
    ab, bc, ac = (np.array(scene.displacement(*pair)) for pair in ((a, b), (b, c), (a, c)))
    assert np.allclose(ab + bc, ac, atol=1e-9)
    torus = np.array(scene.torus)
    off = (np.array(scene.position(b)) - np.array(scene.position(a)) - ab) / torus
    assert np.allclose(off, np.round(off), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(seed=seeds, aspect=st.sampled_from([0.75, 1.0, 1.5]))
def test_the_first_frame_shows_the_shape_whole_and_turns_happen_in_view(seed, aspect):
    scene = scene_of(seed, aspect=aspect)
    for t in [0, *(motion.start for motion in scene.motions[1:])]:
        x, y = scene.position(t)
        r = scene.radius * (1.0 if t == 0 else 0.7) - 1e-9
        assert r <= x <= 1 - r and r <= y <= aspect - r


def test_it_leaves_on_one_side_and_returns_on_the_other():
    motion = Motion(start=0, direction="right", speed="fast")
    scene = dataclasses.replace(scene_of(3), motions=(motion,), origin=(0.9, 0.5))
    xs = [scene.position(t)[0] for t in range(40)]
    back = int(np.argmin(np.diff(xs)))
    assert xs[back] > 1 + scene.radius - STEP["fast"] and xs[back + 1] < -scene.radius + STEP["fast"]
    assert all(abs(b - a - STEP["fast"]) < 1e-9 for n, (a, b) in enumerate(pairwise(xs)) if n != back)


def test_hills_repeat_after_one_width():
    scene = dataclasses.replace(
        scene_of(5), camera="pan-right", motions=(Motion(start=0, direction="still"),)
    )
    near, both = 64, 128
    a, b, c = scene.render([0, near, both], 64, 64)
    assert (a == c).all()
    assert (a[-8:] == b[-8:]).all()


def test_words_follow_the_majority_and_the_sky_changes():
    scene = dataclasses.replace(
        scene_of(7),
        motions=(Motion(start=0, direction="left"), Motion(start=20, direction="up", speed="fast")),
        skies=("day", "night"),
        sky_change=40,
        camera="",
        shape="ball",
        colour="red",
        ground="grass",
    )
    assert scene.words(0, 10) == ("ball", "red", "day", "grass", "left")
    assert scene.words(12, 24) == ("ball", "red", "day", "grass", "left")
    assert scene.words(18, 24) == ("ball", "red", "day", "grass", "up", "fast")
    assert scene.words(41, 60) == ("ball", "red", "night", "grass", "up", "fast")
    before, after = scene.render([40 - FADE, 40 + FADE], 32, 32)
    assert before[:4].mean() > 2 * after[:4].mean()


def test_a_size_is_only_a_resolution():
    scene = scene_of(11, aspect=0.75)
    small = scene.render([9], 48, 64)[0].astype(float)
    large = scene.render([9], 192, 256)[0].reshape(48, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - large).mean() < 1.5


def test_colours_stand_out_from_what_is_behind_them():
    assert "green" not in visible_colours("day", "grass")
    assert "orange" not in visible_colours("sunset", "desert")
    assert "white" not in visible_colours("day", "snow")
    for seed in range(50):
        scene = scene_of(seed)
        assert all(scene.colour in visible_colours(sky, scene.ground) for sky in scene.skies)


def test_how_often_scenes_change():
    scenes = [scene_of(seed) for seed in range(1000)]
    turning = sum(len(scene.motions) > 1 for scene in scenes)
    fading = sum(scene.skies[0] != scene.skies[1] for scene in scenes)
    assert 340 < turning < 460 and 100 < fading < 200
