"""Seconds, frames and latent frames: one place converts, and n frames asked are n frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framepack.errors import InputError
from framepack.planning.timeline import MAX_FRAMES, Timeline

timelines = st.builds(
    Timeline,
    frames=st.integers(1, 500),
    fps=st.floats(0.1, 240),
    stride=st.integers(1, 9),
)


#  frames, stride, latent frames, trimmed
@pytest.mark.parametrize(
    ("frames", "stride", "latents", "trimmed"),
    [
        (1, 4, 1, 0),
        (2, 4, 2, 3),
        (5, 4, 2, 0),
        (6, 4, 3, 3),
        (33, 4, 9, 0),
        (36, 4, 10, 1),
        (37, 4, 10, 0),
        (91, 4, 24, 2),
        (1, 1, 1, 0),
        (40, 1, 40, 0),
        (10, 8, 3, 7),
    ],
)
def test_latent_frames(frames, stride, latents, trimmed):
    timeline = Timeline(frames=frames, fps=30, stride=stride)
    assert (timeline.latent_frames, timeline.trimmed_frames) == (latents, trimmed)


@given(timelines)
def test_latent_frames_decode_to_exactly_the_frames_asked_for(timeline):
    decoded = [frame for i in range(timeline.latent_frames) for frame in timeline.frames_of(i)]
    assert decoded == list(range(timeline.frames))
    assert 0 <= timeline.trimmed_frames < timeline.stride
    assert all(len(timeline.frames_of(i)) > 0 for i in range(timeline.latent_frames))
    for i in range(timeline.latent_frames):
        assert all(timeline.latent_of(frame) == i for frame in timeline.frames_of(i))


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [(5, 8, 40), (5, 30, 150), (0.01, 8, 1), (1.5, 1, 2), (2.5, 1, 3), (1 / 30, 30, 1), (3600, 24, 86_400)],
)
def test_seconds_become_frames(seconds, fps, frames):
    assert Timeline.from_seconds(seconds, fps=fps, stride=4).frames == frames


@given(st.integers(1, 100_000), st.floats(1, 120))
def test_frames_survive_the_way_through_seconds(frames, fps):
    timeline = Timeline(frames=frames, fps=fps, stride=4)
    if timeline.seconds <= 24 * 3600:
        assert Timeline.from_seconds(timeline.seconds, fps=fps, stride=4) == timeline


def test_known_frames_are_sorted_and_counted_from_the_end():
    timeline = Timeline(frames=91, fps=30, stride=4, known=(-1, 0, 7, 0))
    assert timeline.known == (0, 7, 23)  # the end keyframe sits on the last latent frame kept
    assert Timeline(frames=1, fps=30, stride=4, known=(0, -1)).known == (0,)


@pytest.mark.parametrize("known", [(24,), (-25,)])
def test_known_frames_lie_inside(known):
    with pytest.raises(InputError):
        Timeline(frames=91, fps=30, stride=4, known=known)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_absurd_seconds(seconds):
    with pytest.raises(InputError, match="seconds"):
        Timeline.from_seconds(seconds, fps=8, stride=1)


@pytest.mark.parametrize(
    "change",
    [{"frames": 0}, {"frames": -5}, {"frames": MAX_FRAMES + 1}, {"fps": 0}, {"fps": -1}, {"stride": 0}],
)
def test_absurd_timelines(change):
    with pytest.raises(InputError):
        Timeline(**{"frames": 10, "fps": 8.0, "stride": 1, **change})


@pytest.mark.parametrize("fps", [0, -8, float("nan")])
def test_absurd_rates(fps):
    with pytest.raises(InputError, match="rate"):
        Timeline.from_seconds(5, fps=fps, stride=1)


def test_indices_outside_the_video():
    timeline = Timeline(frames=33, fps=30, stride=4)
    for index in (-1, 9):
        with pytest.raises(InputError):
            timeline.frames_of(index)
    for frame in (-1, 33):
        with pytest.raises(InputError):
            timeline.latent_of(frame)
