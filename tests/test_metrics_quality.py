"""Scores of frames and their drift, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from framepack.errors import InputError
from framepack.metrics.bootstrap import bootstrap
from framepack.metrics.colour import lab
from framepack.metrics.drift import drift
from framepack.metrics.quality import (
    QUALITIES,
    colourfulness,
    gradient_energy,
    laplacian_variance,
    mean_lab,
)

SHARPNESS = (laplacian_variance, gradient_energy)
frames_of = st.tuples(st.integers(1, 3), st.integers(3, 9), st.integers(3, 9), st.just(3))
videos = frames_of.flatmap(lambda shape: arrays(np.uint8, shape))
scores = arrays(np.float64, st.integers(2, 60), elements=st.floats(-1e3, 1e3))


def grey(luma: np.ndarray) -> np.ndarray:
    """One frame (1, H, W, 3) of equal R, G and B."""
    return np.repeat(luma[None, ..., None].astype(np.uint8), 3, axis=-1)


def blurred(frame: np.ndarray, times: int) -> np.ndarray:
    """A frame (H, W, 3) after so many passes of a 3 x 3 box."""
    out = frame.astype(np.float64)
    for _ in range(times):
        padded = np.pad(out, ((1, 1), (1, 1), (0, 0)), mode="edge")
        out = sum(padded[y : y + out.shape[0], x : x + out.shape[1]] for y in range(3) for x in range(3)) / 9
    return out.round().astype(np.uint8)


def picture(seed: int = 0, size: int = 32) -> np.ndarray:
    """Coloured blocks of 4 pixels."""
    blocks = np.random.default_rng(seed).integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
    return blocks.repeat(4, axis=0).repeat(4, axis=1)


def test_laplacian_of_a_chessboard():
    """Every inner pixel is +-4 x 255 off its neighbours, half of them each way."""
    board = grey(255 * (np.indices((10, 10)).sum(0) % 2))
    assert laplacian_variance(board) == pytest.approx([(4 * 255) ** 2])


def test_a_ramp_has_slope_and_no_curvature():
    ramp = grey(np.tile(3 * np.arange(20), (12, 1)))
    assert gradient_energy(ramp) == pytest.approx([9.0])
    assert laplacian_variance(ramp) == pytest.approx([0.0], abs=1e-18)
    steep = grey(np.add.outer(4 * np.arange(12), 3 * np.arange(20)))
    assert gradient_energy(steep) == pytest.approx([25.0])


def test_colourfulness_by_hand():
    plain = np.zeros((4, 4, 4, 3), np.uint8)
    plain[1] = 130
    plain[2, ..., 0] = 255  # rg = 255, yb = 127.5, no spread
    plain[3, :2, :, 0], plain[3, 2:, :, 1] = 255, 255  # rg = +-255, yb = 127.5
    expected = [0, 0, 0.3 * np.hypot(255, 127.5), 255 + 0.3 * 127.5]
    assert colourfulness(plain) == pytest.approx(expected)


def test_mean_lab_of_one_colour_and_of_two():
    two = np.zeros((2, 4, 4, 3), np.uint8)
    two[0] = (10, 200, 90)
    two[1, :2], two[1, 2:] = (255, 0, 0), (0, 0, 255)
    expected = [lab([10, 200, 90]), (lab([255, 0, 0]) + lab([0, 0, 255])) / 2]
    assert np.allclose(mean_lab(two), expected, atol=1e-4)


@pytest.mark.parametrize("metric", SHARPNESS)
@given(video=videos)
@settings(max_examples=40, deadline=None)
def test_sharpness_knows_no_direction_and_no_brightness(metric, video):
    found = metric(video)
    for other in (video[:, ::-1], video[:, :, ::-1], video.swapaxes(1, 2), 255 - video):
        assert np.allclose(metric(other), found, rtol=1e-9, atol=1e-6)
    half = video // 2
    assert np.allclose(metric(half + 100), metric(half), rtol=1e-9, atol=1e-6)
    assert np.allclose(metric(half * 2), 4 * metric(half), rtol=1e-9, atol=1e-6)


@given(video=videos)
@settings(max_examples=40, deadline=None)
def test_each_frame_is_scored_on_its_own(video):
    for metric in QUALITIES.values():
        apart = np.concatenate([metric(frame[None]) for frame in video])
        assert np.array_equal(metric(video), apart)


@given(video=videos)
@settings(max_examples=40, deadline=None)
def test_where_pixels_lie_is_nothing_to_colour(video):
    pixels = video.reshape(len(video), -1, 3)
    moved = pixels[:, np.random.default_rng(1).permutation(pixels.shape[1])].reshape(video.shape)
    for metric in (colourfulness, mean_lab):
        assert np.allclose(metric(moved), metric(video), rtol=1e-5, atol=1e-3)
    assert np.all(colourfulness(video) >= 0)


@pytest.mark.parametrize("metric", SHARPNESS)
@pytest.mark.parametrize("seed", range(5))
def test_blur_lowers_sharpness_at_every_pass(metric, seed):
    found = metric(np.stack([blurred(picture(seed), times) for times in range(5)]))
    assert np.all(np.diff(found) < 0)


@pytest.mark.parametrize("frames", (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3)), [], np.zeros(0)))
def test_what_is_no_video_is_refused(frames):
    for metric in QUALITIES.values():
        with pytest.raises(InputError, match="frames of shape"):
            metric(frames)
    with pytest.raises(InputError, match="3 x 3"):
        colourfulness(np.zeros((1, 2, 8, 3), np.uint8))


# Drift ------------------------------------------------------------------------------------------------


def test_drift_of_a_line():
    """Of 20 frames, 3 lie at either end: their means are 1 and 18."""
    found = drift(np.arange(20.0))
    assert (found.start, found.end) == (1.0, 18.0)
    assert (found.absolute, found.change, found.relative) == (17.0, 17.0, 1700.0)
    falling = drift(np.arange(20.0)[::-1])
    assert (falling.absolute, falling.change) == (17.0, -17.0)
    assert falling.relative == pytest.approx(100 * 17 / 18)


@pytest.mark.parametrize(("frames", "ends"), [(2, 1), (3, 1), (9, 1), (10, 2), (80, 12), (100, 15)])
def test_frames_at_either_end(frames, ends):
    scores = np.zeros(frames)
    scores[:ends] = 1
    assert drift(scores).absolute == 1
    if ends < frames - ends:
        scores[ends] = 7  # the next one counts no more
        assert drift(scores).absolute == 1


def test_drift_of_a_colour_is_its_distance():
    colours = np.zeros((10, 3))
    colours[-2:] = (3, 4, 12)
    assert drift(colours).absolute == 13
    assert drift(colours).relative == np.inf
    assert drift(np.zeros((10, 3))).relative == 0


def test_a_video_that_blurs_drifts_and_a_still_one_does_not():
    still = np.repeat(picture()[None], 20, axis=0)
    blurring = np.stack([blurred(picture(), n // 4) for n in range(20)])
    for metric in QUALITIES.values():
        assert drift(metric(still)).absolute == 0
    for metric in SHARPNESS:
        found = drift(metric(blurring))
        assert found.change < 0 and found.relative > 50


def test_a_video_that_reddens_drifts_in_colour_and_not_in_sharpness():
    still = np.repeat(grey(np.full((8, 8), 100.0)), 20, axis=0)
    still[..., 0] += np.arange(0, 40, 2, dtype=np.uint8)[:, None, None]
    assert drift(colourfulness(still)).change > 10
    assert drift(mean_lab(still)).absolute > 10
    assert drift(laplacian_variance(still)).absolute == pytest.approx(0, abs=1e-9)


@given(values=scores, shift=st.floats(-100, 100), scale=st.floats(-5, 5))
@settings(max_examples=100, deadline=None)
def test_drift_is_of_differences(values, shift, scale):
    found = drift(values)
    assert 0 <= found.absolute <= np.ptp(values) + 1e-9
    assert drift(values + shift).absolute == pytest.approx(found.absolute, abs=1e-6)
    assert drift(values * scale).absolute == pytest.approx(abs(scale) * found.absolute, abs=1e-6)
    assert drift(values[::-1]).absolute == pytest.approx(found.absolute, abs=1e-9)
    assert drift(np.stack([values, values], axis=1)).absolute == pytest.approx(
        np.sqrt(2) * found.absolute, abs=1e-6
    )


@pytest.mark.parametrize(
    ("scores", "share", "rule"),
    [
        ([1.0], 0.15, "two frames"),
        ([], 0.15, "two frames"),
        (np.zeros((4, 2, 2)), 0.15, "two frames"),
        ([1.0, 2.0], 0.0, "above 0"),
        ([1.0, 2.0], 0.6, "at most 0.5"),
        ([1.0, np.nan], 0.15, "finite"),
        ([1.0, np.inf], 0.15, "finite"),
    ],
)
def test_drift_refuses(scores, share, rule):
    with pytest.raises(InputError, match=rule):
        drift(scores, share)


# Bootstrap --------------------------------------------------------------------------------------------


def test_bootstrap_of_one_value_is_sure():
    found = bootstrap([4.0, 4.0, 4.0])
    assert (found.value, found.low, found.high) == (4.0, 4.0, 4.0)


def test_bootstrap_is_the_normal_interval_of_many_samples():
    samples = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = bootstrap(samples)
    error = 1.96 * samples.std() / np.sqrt(len(samples))
    assert found.value == pytest.approx(samples.mean())
    assert found.high - found.value == pytest.approx(error, rel=0.06)
    assert found.value - found.low == pytest.approx(error, rel=0.06)
    assert bootstrap(samples) == found, "the same seed, the same interval"


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    """500 samples of size 20: the percentile interval is a little short there, by theory about 92 %."""
    rng = np.random.default_rng(1)
    hits = [
        (lambda found: found.low <= 0 <= found.high)(bootstrap(rng.normal(size=20), resamples=500))
        for _ in range(500)
    ]
    assert 0.88 <= np.mean(hits) <= 0.97


def test_bootstrap_of_a_ratio_resamples_both_groups():
    first, last = np.array([1.0, 1.0, 2.0]), np.array([4.0, 4.0, 4.0])
    found = bootstrap(first, last, statistic=lambda a, b: np.median(b, axis=1) / np.median(a, axis=1))
    assert (found.value, found.low, found.high) == (4.0, 2.0, 4.0)


@pytest.mark.parametrize("groups", [(), ([],), ([1.0], []), (np.zeros((2, 2)),)])
def test_bootstrap_refuses(groups):
    with pytest.raises(InputError, match="samples of shape"):
        bootstrap(*groups)
    with pytest.raises(InputError, match="level"):
        bootstrap([1.0], level=1.0)
