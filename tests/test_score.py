"""Scoring: what is scored of which videos, what is known of them, and what scores come to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from framepack.errors import InputError, UnknownNameError
from framepack.evaluation.clips import world_clips
from framepack.evaluation.score import (
    ALL,
    Scorer,
    chosen_metrics,
    clip_scores,
    curve,
    subject_of,
    value_of,
)
from framepack.evaluation.truth import TRUTH
from framepack.metrics.drift import drift, drift_of
from framepack.metrics.metric import Subject
from framepack.video.io import write_video

NAMES = ("sharpness", "colour-shift", "warping-error", "right-colour", "right-motion")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    """A clip of the world, as a file."""
    asked = world_clips(2, 33, (128, 128))[1]
    assert asked.scene is not None
    path = tmp_path_factory.mktemp("clips") / f"{asked.name}.mp4"
    write_video(path, iter(asked.scene.render(range(33), 128, 128)), 8)
    return path, asked


def test_a_clip_of_the_world_is_scored(world):
    path, asked = world
    found = clip_scores(path, Scorer(NAMES), asked)
    assert (found.clip, found.video) == (asked.name, path)
    assert {name: len(scores) for name, scores in found.values.items()} == {
        "right-colour": 33,
        "right-motion": 7,
        "sharpness": 33,
        "colour-shift": 33,
        "warping-error": 32,
    }
    assert value_of(found.values["right-motion"]) == 1 and value_of(found.values["sharpness"]) > 10


def test_what_a_file_tells_of_itself(tmp_path: Path):
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    config = {"prompt": "A red star moves left", "cues": None}
    for name, told, prompt, words in (
        ("plain", None, None, None),
        ("foreign", {"config": "x"}, None, None),
        ("ours", {"model": "wan", "config": config}, "A red star moves left", None),
        ("cues", {"model": "bundled", "config": config | {"cues": [{}]}}, None, None),
        ("empty", {"model": "bundled", "config": config | {"prompt": " "}}, None, None),
        (
            "world",
            {"model": "bundled", "config": config},
            "A red star moves left",
            {"shape": "star", "colour": "red", "direction": "left"},
        ),
    ):
        path = tmp_path / f"{name}.mp4"
        write_video(path, iter(frames), 12.5, told)
        found = subject_of(path)
        assert (found.prompt, found.words, found.fps, found.frames.shape) == (
            prompt,
            words,
            12.5,
            frames.shape,
        )


def test_what_cannot_be_scored_is_told(tmp_path: Path):
    path = tmp_path / "one.mp4"
    write_video(path, iter(np.zeros((1, 32, 32, 3), np.uint8)), 8)
    with pytest.raises(InputError, match="has 1 frames: two or more"):
        subject_of(path)
    with pytest.raises(InputError, match="does not exist"):
        subject_of(tmp_path / "none.mp4")
    with pytest.raises(UnknownNameError, match="unknown metric 'sharp'"):
        Scorer(["sharp"])


def test_only_what_a_subject_can_have_is_scored(world):
    subject = subject_of(world[0])
    scorer = Scorer(NAMES)
    assert set(scorer(subject)) == {"sharpness", "colour-shift", "warping-error"}
    assert set(scorer.lacking(subject)) == {"right-colour", "right-motion"}


def test_scores_that_are_there_are_not_computed_again(world):
    path, asked = world
    scorer, opened = Scorer(NAMES), []

    def subject() -> Subject:
        opened.append(path)
        return subject_of(path, asked)

    there = {"sharpness": [1.0, 2.0]}
    found = scorer.missing(subject, there)
    assert found["sharpness"] == [1.0, 2.0] and set(found) == set(NAMES) and opened == [path]
    assert scorer.missing(subject, found) == found and opened == [path]
    without = Scorer(["niqe", "sharpness"]).missing(subject, {})
    assert without["niqe"] == [] and len(without["sharpness"]) == 33


def test_a_frame_with_nothing_to_score_is_none_in_json(world):
    path, asked = world
    empty = np.zeros((33, 128, 128, 3), np.uint8)
    words = subject_of(path, asked).words
    assert words is not None
    subject = Subject(frames=empty, fps=8, words=dict(words) | {"direction": "right", "speed": ""})
    found = Scorer(["right-colour"]).missing(lambda: subject, {})["right-colour"]
    assert found[0] is None and found[-1] == 0.0  # it may be away at first, not for ever


def test_metrics_for_a_kind_of_videos():
    world, absent = chosen_metrics((), world=True, size=(128, 128))
    plain, absent_there = chosen_metrics((), world=False, size=(480, 832))
    assert set(world) - set(plain) == set(TRUTH)
    assert "37" in absent["niqe"] and "niqe" in plain and "niqe" not in absent_there
    assert {*world, *absent} == set(ALL) and {*plain, *absent_there} == set(ALL)
    assert chosen_metrics(["sharpness"], world=False)[0] == ("sharpness",)
    with pytest.raises(InputError, match="metric 'right-sky' has no scores here"):
        chosen_metrics(["right-sky"], world=False)
    with pytest.raises(InputError, match="'clarity' is unavailable"):
        chosen_metrics(["clarity"], world=True)


def test_what_scores_come_to():
    scores = [1.0, math.nan, 3.0, 5.0]
    assert value_of(scores) == 3 and math.isnan(value_of([math.nan])) and math.isnan(value_of([]))
    assert drift_of(scores) == 4 and math.isnan(drift_of([1.0])) and math.isnan(drift_of([math.nan, 1.0]))
    line = np.arange(73.0)
    assert curve(line, 4) == pytest.approx([8.5, 26.5, 45, 63.5], abs=0.5)
    assert np.isnan(curve([1.0, math.nan], 2)[1]) and curve([2.0] * 10, 7) == pytest.approx([2] * 7)
    assert np.isnan(curve([], 3)).all()


def test_drift_leaves_out_what_has_no_score():
    scores = np.arange(20.0)
    holes = scores.copy()
    holes[[0, 2, 9, 19]] = math.nan
    assert drift(scores).absolute == 17 and drift(holes).absolute == pytest.approx(17.5 - 1)
