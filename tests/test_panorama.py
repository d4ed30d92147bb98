"""Panoramas: away from a place of which no words tell, and back, in the world and in a cache of its clips."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from framepack.conditioning.lexicon import SLOT_OF, parse
from framepack.data.latents import CacheConfig, LatentCache, claim_cache, render_shard, scene_of, shard_path
from framepack.data.panorama import BEAT, sample_panorama
from framepack.data.world import SIDE, Motion, Scene, sample_scene
from framepack.errors import InputError

FRAMES = 73
seeds = st.integers(0, 2**31)
pytestmark = pytest.mark.usefixtures("one_thread")


def panorama(seed: int, frames: int = FRAMES, aspect: float = 1.0) -> Scene:
    return sample_panorama(np.random.default_rng(seed), frames, aspect)


def seen(scene: Scene, frame: int) -> float:
    """Share of the view that the other ground takes up."""
    edge = scene.border - scene.pan(frame)
    return float(np.clip(edge if SIDE[scene.camera] > 0 else 1 - edge, 0, 1))


@settings(max_examples=100, deadline=None)
@given(seed=seeds, start=st.integers(0, FRAMES - 1), length=st.integers(1, 30))
def test_the_words_tell_of_sky_ground_and_camera_alone(seed, start, length):
    scene, rng = panorama(seed), np.random.default_rng(seed)
    words = scene.words(start, start + length)
    assert {SLOT_OF[word] for word in words} <= {"sky", "ground", "speed", "camera"}
    for language in ("en", "ja"):
        parsed = parse(scene.caption(start, start + length, language, rng))
        assert parsed.words == words and parsed.unknown == parsed.surplus == ()


def test_the_camera_is_told_of_for_the_sections_in_which_it_does_so_and_for_no_other():
    for seed in range(20):
        scene = panorama(seed)
        assert all(turn.start % BEAT == 0 for turn in scene.turns)
        for start in range(1, FRAMES, BEAT):
            said = [word for word in scene.words(start, start + BEAT) if word in SIDE]
            side = SIDE[said[0] if said else ""]
            # All frames of the section have moved as its words say.
            for frame in range(start, start + BEAT):
                assert np.sign(scene.pan(frame) - scene.pan(frame - 1)) == side
        assert {word for start in range(1, FRAMES, BEAT) for word in scene.words(start, start + BEAT)} > {
            "fast",
            "pan-left",
            "pan-right",
        }


@settings(max_examples=20, deadline=None)
@given(seed=seeds, step=st.integers(0, 18), aspect=st.sampled_from([0.75, 1.0, 1.5]))
def test_the_way_back_shows_what_the_way_out_showed(seed, step, aspect):
    scene = panorama(seed, aspect=aspect)
    leg, rest = scene.turns[0].start, scene.turns[-1].start
    out, back, late = scene.render([min(step, leg), max(rest - step, rest - leg), FRAMES + 40], 48, 64)
    assert (out == back).all() and (late == scene.render([0], 48, 64)[0]).all()


@settings(max_examples=50, deadline=None)
@given(seed=seeds, aspect=st.sampled_from([0.6, 1.0, 1.67]), frames=st.sampled_from([43, 73, 96, 121]))
def test_the_first_frame_has_the_place_and_it_leaves_and_is_back_at_rest(seed, aspect, frames):
    scene = panorama(seed, frames, aspect)
    leg = scene.turns[0].start
    assert 0.3 < seen(scene, 0) < 0.6 and scene.aside != scene.ground
    assert seen(scene, leg) == 0 and seen(scene, frames - BEAT - 1) == seen(scene, frames) == seen(scene, 0)


def test_the_place_is_away_for_anything_from_a_moment_to_most():
    away = np.array([sum(seen(s, t) == 0 for t in range(FRAMES)) for s in map(panorama, range(300))])
    assert away.min() == 1 and away.max() > 35
    assert all(((low <= away) & (away < low + 12)).sum() > 40 for low in (1, 13, 25))


@pytest.mark.parametrize("camera", ["pan-right", "pan-left"])
def test_the_place_goes_with_the_near_hills_and_does_not_repeat(camera):
    scene = replace(panorama(1), camera=camera, border=0.5, pace="fast", turns=())
    scene = replace(scene, ground="desert", aside="sea")
    # 4 px a frame at 128 px.
    drawn = scene.render([0, 2, 40], 128, 128)
    marked = (drawn != replace(scene, aside="").render([0, 2, 40], 128, 128)).any(axis=-1).any(axis=1)
    assert marked[0].sum() == 64 and marked[1].sum() == 56 and not marked[2].any()
    assert (marked[0][:64] if camera == "pan-right" else marked[0][64:]).all()
    # Above the hills the sky is one.
    assert (drawn[0][0] == drawn[2][0]).all()


def test_scenes_without_another_ground_are_as_they_were():
    scene = sample_scene(np.random.default_rng(0), 80)
    assert (scene.aside, scene.turns, scene.pace) == ("", (), "")
    assert scene.words(0, 9) == ("triangle", "pink", "cloudy", "sea", "left", "fast")
    column = np.array([[155, 164, 175], [146, 138, 156], [142, 174, 192], [29, 87, 129]])
    assert np.abs(scene.render([40], 4, 4)[0, :, 1].astype(int) - column).max() <= 1
    panned = replace(scene, camera="pan-left", motions=(Motion(start=0, direction="left", speed="fast"),))
    assert [panned.pan(t) for t in (0, 1, 64)] == [0, -2 / 128, -1]
    assert panned.words(0, 9)[-3:] == ("left", "fast", "pan-left")


# In a cache ------------------------------------------------------------------------------------------


def config(**changes: object) -> CacheConfig:
    plain = CacheConfig(clips=40, frames=20, sizes=((32, 32),), seed=5, codec="digest")
    return replace(plain, **changes)


def test_a_share_of_the_clips_are_panoramas_and_the_others_stay():
    def scenes(share: float) -> list[Scene]:
        return [scene_of(5, clip, 80, 1.0, share) for clip in range(400)]

    none, some, more, every = map(scenes, (0.0, 0.3, 0.6, 1.0))
    counts = [sum(bool(scene.aside) for scene in part) for part in (none, some, more, every)]
    assert counts[0] == 0 and 90 < counts[1] < 150 and 200 < counts[2] < 280 and counts[3] == 400
    for plain, few, many in zip(none, some, more, strict=True):
        assert few in (plain, many) and (many == plain or many.aside)


def test_the_cards_of_older_caches_are_read_and_a_share_is_told_apart(tmp_path):
    card = '{"clips": 40, "frames": 20, "sizes": [[32, 32]], "seed": 5, "codec": "digest"}'
    (tmp_path / "cache.json").write_text(card)
    claim_cache(tmp_path, config())
    claim_cache(tmp_path / "new", config())
    assert (tmp_path / "new" / "cache.json").read_text() == card
    with pytest.raises(InputError, match="a cache of another configuration"):
        claim_cache(tmp_path, config(panorama=0.5))
    claim_cache(tmp_path / "half", config(panorama=0.5))
    assert json.loads((tmp_path / "half" / "cache.json").read_text())["panorama"] == 0.5
    with pytest.raises(InputError, match="panorama"):
        config(panorama=1.5)


def test_clips_are_drawn_as_their_scenes_are_and_panoramas_are_read_from_their_first_frame(tmp_path):
    mixed = config(panorama=0.5)
    for n, shard in enumerate(mixed.shards):
        pixels = render_shard(mixed, shard)
        save_file(
            {"latents": torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).half().contiguous()},
            shard_path(tmp_path, n),
        )
    cache, clips = LatentCache(tmp_path, mixed), list(range(40))
    kinds = [bool(cache.scene(clip).aside) for clip in clips]
    assert 10 < sum(kinds) < 30
    for clip in (kinds.index(True), kinds.index(False)):
        held = cache.latents([clip], [[7]])[0, :, 0].permute(1, 2, 0).numpy()
        assert (held == cache.scene(clip).render([7], 32, 32)[0]).all()
    found = cache.offsets(np.random.default_rng(3), clips, 8)
    drawn = np.random.default_rng(3).integers(0, 13, 40).tolist()
    assert found == [0 if kind else offset for kind, offset in zip(kinds, drawn, strict=True)]
