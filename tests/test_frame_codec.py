"""The frame codec: exact bookkeeping of scale and frames, and training that resumes to the bit."""

import json

import numpy as np
import pytest
import torch

from framepack.codecs.frame import FrameAutoencoder
from framepack.errors import InputError, RunConflictError
from framepack.training import codec as training
from framepack.training.codec import CodecTraining, initialise_linear, normalise, psnr, render_batch, to_video


@pytest.fixture(scope="module")
def frames():
    return render_batch(0, 0, 64, 64, 96)


@pytest.fixture(scope="module")
def model(frames):
    torch.manual_seed(0)
    model = FrameAutoencoder()
    initialise_linear(model, frames)
    normalise(model, to_video(frames, "cpu"))
    return model


@torch.no_grad()
def test_latents_have_mean_square_one_and_keep_their_share_of_energy(model, frames):
    latents = model.encode(to_video(frames, "cpu"))
    assert latents.shape == (96, 24, 1, 4, 4)
    assert latents.square().mean().item() == pytest.approx(1, abs=0.02)
    spread = latents.transpose(0, 1).flatten(1).std(1)
    assert spread[0] > 5 * spread[-1]


@torch.no_grad()
def test_principal_components_alone_reconstruct(model, frames):
    video = to_video(frames, "cpu")
    assert psnr(model.decode(model.encode(video)), video).mean() > 24


@torch.no_grad()
def test_each_frame_is_coded_on_its_own(model, frames):
    clip = to_video(frames[:6], "cpu").permute(2, 1, 0, 3, 4)  # (1, 3, 6, H, W)
    whole = model.encode(clip)
    assert whole.shape == (1, 24, 6, 4, 4)
    assert torch.allclose(whole[:, :, 4:5], model.encode(clip[:, :, 4:5]), atol=1e-4)
    decoded = model.decode(whole)
    assert decoded.shape == clip.shape and decoded.abs().max() <= 1
    assert torch.allclose(decoded[:, :, 2:3], model.decode(whole[:, :, 2:3]), atol=1e-4)


def test_a_size_that_does_not_fit_is_refused(model):
    with pytest.raises(InputError, match="multiples of 16"):
        model.encode(torch.zeros(1, 3, 1, 60, 64))


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(model, frames, tmp_path):
    training.save_model(model, tmp_path / "codec")
    again = FrameAutoencoder.from_pretrained(tmp_path / "codec")
    video = to_video(frames[:2], "cpu")
    assert again.config.scale == model.config.scale
    assert torch.equal(again.encode(video), model.encode(video))
    assert sum(p.numel() for p in again.parameters()) < 3_000_000


SMALL = CodecTraining(steps=4, size=32, crop=16, crop_share=0.5, pixels=2, save_every=0, bf16=False)


def test_interrupted_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda model, frames: {"psnr": 0.0})
    monkeypatch.setattr(training, "save_sheet", lambda *args: None)
    whole = training.train_codec(SMALL, tmp_path / "whole", shown=False)
    step = training._train_step
    calls = 0

    def failing(*args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(training, "_train_step", failing)
    with pytest.raises(KeyboardInterrupt):
        training.train_codec(SMALL, tmp_path / "part", shown=False)
    resumed = training.train_codec(SMALL, tmp_path / "part", shown=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert whole.config.scale == resumed.config.scale
    rows = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["loss"] is None, "JSON knows no NaN"
    with pytest.raises(RunConflictError):
        training.train_codec(CodecTraining(steps=5), tmp_path / "part", shown=False)


def test_batches_are_a_function_of_seed_and_step():
    one, two = render_batch(0, 5, 64, 32, 8), render_batch(0, 5, 64, 32, 8)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, render_batch(0, 6, 64, 32, 8))


@pytest.mark.parametrize("bad", [{"steps": 0}, {"minutes": 0.0}, {"warmup": 0}, {"ema": 2.0}, {"crop": 24}])
def test_values_that_no_training_could_have(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        CodecTraining(**bad)


def test_input_from_elsewhere_comes_to_the_codec():
    """On a GPU the codec takes frames and latents as they come; the meta device stands in for one."""
    codec = FrameAutoencoder().to("meta")
    latents = codec.encode(torch.zeros(1, 3, 2, 32, 32))
    assert latents.device.type == "meta" and latents.shape == (1, 24, 2, 2, 2)
    video = codec.decode(torch.zeros(1, 24, 2, 2, 2))
    assert video.device.type == "meta" and video.shape == (1, 3, 2, 32, 32)
