"""Revisits: a perfect memory has no error, none at all a known one, and a short one fails where it ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from framepack.conditioning.lexicon import parse
from framepack.data.world import Scene
from framepack.errors import InputError
from framepack.evaluation.revisit import prompt_of, returns, revisit_scenes, revisits
from framepack.metrics.colour import difference
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.prompts import script_of
from framepack.planning.timeline import Timeline

FRAMES, SIZE = 73, (64, 64)
pytestmark = pytest.mark.usefixtures("one_thread")


def remembering(scene: Scene, memory: int) -> NDArray[np.uint8]:
    """The scene as one draws it who forgets what is out of view for more than ``memory`` frames."""
    video = scene.render(range(FRAMES), *SIZE)
    found = returns(scene, FRAMES, SIZE)
    forgotten = next((back.at for back in found if back.away > memory), FRAMES)
    video[forgotten:] = replace(scene, aside="").render(range(forgotten, FRAMES), *SIZE)
    return video


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return revisit_scenes(7, FRAMES, SIZE)


def test_every_scene_has_a_return_and_they_are_all_over(scenes):
    away = [back.away for scene in scenes for back in returns(scene, FRAMES, SIZE)]
    assert min(away) < 20 and max(away) > 40
    assert revisit_scenes(3, FRAMES, SIZE) == scenes[:3]
    for frames in (43, 56):
        assert all(list(returns(scene, frames, SIZE)) for scene in revisit_scenes(8, frames, SIZE))
    with pytest.raises(InputError, match="42 frames: a place takes up to 43"):
        revisit_scenes(1, 42, SIZE)


def test_what_is_compared_was_gone_and_is_back(scenes):
    for scene in scenes:
        for back in returns(scene, FRAMES, SIZE):
            box = back.box
            came = min(back.at, scene.turns[-1].start)
            before, between, now = scene.render([came - back.away, scene.turns[0].start, back.at], *SIZE)
            assert (before == now).all() and (between[box] != now[box]).any()
            bare = replace(scene, aside="").render([back.at], *SIZE)[0][box]
            assert (scene.render([back.at], *SIZE)[0][box] != bare).any(axis=-1).mean() > 0.3


def test_a_perfect_video_has_no_error(scenes):
    for scene in scenes:
        found = revisits(scene, scene.render(range(FRAMES), *SIZE), clip="one")
        assert found.clip == "one" and found.error and set(found.error) == {0.0}


def test_what_happens_before_the_return_or_elsewhere_does_not_count(scenes):
    scene = scenes[0]
    video = scene.render(range(FRAMES), *SIZE)
    found = list(returns(scene, FRAMES, SIZE))
    video[: min(back.at for back in found)] = 0
    for back in found:
        kept = video[back.at][back.box].copy()
        video[back.at] = 0
        video[back.at][back.box] = kept
    assert sum(revisits(scene, video).error) == 0


def test_another_ground_has_the_error_of_that_ground(scenes):
    scene = replace(scenes[0], aside="sea", ground="snow")
    other = replace(scene, aside="desert")
    found = revisits(scene, other.render(range(FRAMES), *SIZE))
    assert all(20 < error < 90 for error in found.error)
    assert max(found.error) > max(revisits(scene, remembering(scene, FRAMES)).error) == 0


def test_a_short_memory_fails_from_its_end_on(scenes):
    memory, near, far = 30, [], []
    for scene in scenes:
        found = revisits(scene, remembering(scene, memory))
        for away, error in zip(found.away, found.error, strict=True):
            (near if away <= memory else far).append(error)
    assert near and far
    assert max(near) == 0 and min(far) > 2


def test_no_memory_has_the_error_of_the_ground_that_is_there(scenes):
    for scene in scenes:
        bare = replace(scene, aside="").render(range(FRAMES), *SIZE)
        truth = scene.render(range(FRAMES), *SIZE)
        found = revisits(scene, remembering(scene, 0))
        for back, error in zip(returns(scene, FRAMES, SIZE), found.error, strict=True):
            frames = bare[back.at][back.box], truth[back.at][back.box]
            assert error == pytest.approx(float(difference(*frames).mean()))


def test_a_place_that_never_leaves_the_view_does_not_come_back(scenes):
    for scene in scenes:
        first = scene.render([0] * FRAMES, *SIZE)
        assert revisits(scene, first).error == ()
        # Half of the way is not away either.
        slow = [min(t, scene.turns[0].start // 2) for t in range(FRAMES)]
        assert revisits(scene, scene.render(slow, *SIZE)).error == ()


def test_frames_of_another_shape_are_refused(scenes):
    with pytest.raises(InputError, match="96 x 64 px, of a scene of height / width 1"):
        revisits(scenes[0], np.zeros((FRAMES, 64, 96, 3), np.uint8))


def test_the_prompt_turns_the_camera_with_the_section(scenes):
    timeline = Timeline(frames=FRAMES, fps=8.0, stride=1, known=(0,))
    sections = plan(timeline, named_method("vanilla", base=(1, 1, 1), section_size=6)).sections
    spans = [section.spans[0] for section in sections]
    for scene in scenes:
        script = script_of(prompt_of(scene, FRAMES), spans, timeline)
        for span in spans:
            ((prompt, _),) = script.mix(span, timeline)
            assert parse(prompt).words == scene.words(span.start, span.stop)


def test_the_prompt_of_a_scene_without_changes_is_a_sentence():
    scene = replace(revisit_scenes(1, FRAMES, SIZE)[0], turns=())
    assert not prompt_of(scene, FRAMES).startswith("[")
