"""The families' codecs against diffusers' pipelines, and the errors of their folders."""

from __future__ import annotations

import json
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan, HeliosPipeline, HunyuanVideoFramepackPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file, save_file

import tiny_parts as tiny
from framepack.codecs.latent_colours import LATENT_COLOURS
from framepack.codecs.loading import load_module
from framepack.codecs.video_vae import VideoCodec, load_codec
from framepack.errors import InputError, ModelError

torch.set_num_threads(1)
MAKERS = {"hunyuan": tiny.hunyuan_video_vae, "wan": tiny.wan_vae, "wan-2.2": tiny.wan_2_2_vae}
STRIDES = {"hunyuan": 8, "wan": 8, "wan-2.2": 16}


@pytest.fixture(scope="module", params=list(MAKERS))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def codec(family):
    return VideoCodec(MAKERS[family]().requires_grad_(False))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vaes")
    for name, make in MAKERS.items():
        make().save_pretrained(root / name)
    return root


def video_of(frames: int, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def test_what_it_says_of_itself(codec, family):
    said = (codec.latent_channels, codec.spatial_stride, codec.temporal_stride)
    assert said == {"hunyuan": (16, 8, 4), "wan": (16, 8, 4), "wan-2.2": (48, 16, 4)}[family]
    assert codec.dtype == torch.float32 and codec.device.type == "cpu"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_frames_and_latents(codec, family, count):
    """5 latents are more than diffusers decodes of HunyuanVideo in one go."""
    video = video_of(4 * count - 3, 32, 48)
    latents = codec.encode(video)
    stride = STRIDES[family]
    assert latents.shape == (1, codec.latent_channels, count, 32 // stride, 48 // stride)
    assert latents.dtype == torch.float32
    out = codec.decode(latents)
    assert out.shape == video.shape and out.abs().max() <= 1


def test_hunyuan_video_encodes_as_its_pipeline(monkeypatch):
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    vae = tiny.hunyuan_video_vae().requires_grad_(False)
    pipeline = SimpleNamespace(vae=vae)
    picture = video_of(1)
    theirs = HunyuanVideoFramepackPipeline.prepare_image_latents(
        pipeline, picture[:, :, 0], dtype=torch.float32, device="cpu"
    )
    assert torch.equal(VideoCodec(vae).encode(picture), theirs)


def test_hunyuan_video_decodes_as_its_pipeline():
    vae = tiny.hunyuan_video_vae().requires_grad_(False)
    latents = torch.randn(1, 16, 3, 4, 6)
    theirs = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    assert torch.equal(VideoCodec(vae).decode(latents), theirs.clamp(-1, 1))


@pytest.mark.parametrize("family", ["wan", "wan-2.2"])
def test_wan_encodes_and_decodes_as_helios(family, monkeypatch):
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    vae = MAKERS[family]().requires_grad_(False)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean, std = (torch.tensor(vae.config[name]).view(shape) for name in ("latents_mean", "latents_std"))
    pipeline = SimpleNamespace(vae=vae, vae_scale_factor_temporal=4, _execution_device="cpu")
    video = video_of(9)
    first, theirs = HeliosPipeline.prepare_video_latents(
        pipeline, video, mean, 1.0 / std, 3, dtype=torch.float32
    )
    codec = VideoCodec(vae)
    assert torch.equal(codec.encode(video), theirs)
    assert torch.equal(codec.encode(video[:, :, :1]), first)
    # HeliosPipeline.__call__: latents / latents_std + latents_mean, where latents_std is 1 / std.
    raw = theirs / (1.0 / std) + mean
    assert torch.equal(codec.decode(theirs), vae.decode(raw, return_dict=False)[0])


def test_the_same_video_gives_the_same_latents(codec):
    video = video_of(5, 32, 48)
    assert torch.equal(codec.encode(video), codec.encode(video))


@pytest.mark.parametrize("family", ["wan", "wan-2.2"])
def test_in_wan_the_first_latents_do_not_depend_on_later_frames(family):
    """A start picture and a prefix have the latents that the whole video has there."""
    codec = VideoCodec(MAKERS[family]().requires_grad_(False))
    video = video_of(9, 32, 48)
    whole = codec.encode(video)
    assert torch.allclose(whole[:, :, :1], codec.encode(video[:, :, :1]), atol=1e-4)
    assert torch.allclose(whole[:, :, :2], codec.encode(video[:, :, :5]), atol=1e-4)


def test_sizes_that_do_not_fit(codec, family):
    with pytest.raises(InputError, match=f"48 x 36 pixels: the codec needs multiples of {STRIDES[family]}"):
        codec.encode(video_of(1, 36, 48))
    with pytest.raises(InputError, match=r"of 7 frames: .* cut it to 5 or repeat its last frame up to 9"):
        codec.encode(video_of(7, 32, 48))


def test_scaling_is_not_rounded_with_the_weights(family):
    """In bfloat16 the VAE is rounded, the means and scales are not."""
    vae = MAKERS[family]().requires_grad_(False).to(torch.bfloat16)
    codec = VideoCodec(vae).to(torch.bfloat16)
    video = video_of(1, 32, 48)
    latents = codec.encode(video)
    raw = vae.encode(video.bfloat16()).latent_dist.mode().float()
    exact = VideoCodec(MAKERS[family]())
    assert latents.dtype == torch.float32
    assert torch.equal(latents, (raw - exact._mean) * exact._scale)
    assert codec.decode(latents).dtype == torch.bfloat16


def test_tiling_is_off_until_asked_for(family):
    vae = MAKERS[family]().requires_grad_(False)
    codec = VideoCodec(vae)
    latents = torch.randn(1, codec.latent_channels, 1, 64 // STRIDES[family], 320 // STRIDES[family])
    assert not vae.use_tiling
    whole = codec.decode(latents)
    codec.enable_tiling()
    assert vae.use_tiling
    tiled = codec.decode(latents)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)


def test_preview_is_the_published_map(codec, family):
    name = type(codec.vae).__name__
    colours = LATENT_COLOURS[name, codec.latent_channels]
    latents = 0.5 * torch.randn(1, codec.latent_channels, 2, 4, 6)
    rough = codec.preview(latents)
    assert rough.shape == (1, 3, 2, 4, 6)
    one = latents[0, :, 1, 2, 3] @ torch.tensor(colours.factors) + torch.tensor(colours.bias)
    assert torch.allclose(rough[0, :, 1, 2, 3], one.clamp(-1, 1), atol=1e-6)
    assert len(colours.factors) == codec.latent_channels


def test_preview_without_a_map_decodes_small_latents():
    codec = VideoCodec(tiny.wan_vae(channels=4).requires_grad_(False))
    latents = torch.randn(1, 4, 2, 24, 40)
    rough = codec.preview(latents)
    assert rough.shape == (1, 3, 2, 80, 128)
    alone = codec.preview(latents[:, :, 1:])
    assert torch.allclose(rough[:, :, 1:], alone, atol=1e-6)


def test_a_folder_gives_the_codec_saved_there(family, folders, tmp_path):
    codec = load_codec(folders / family)
    assert codec.dtype == torch.float32 and not any(p.requires_grad for p in codec.parameters())
    video = video_of(5, 32, 48)
    assert torch.equal(codec.encode(video), VideoCodec(MAKERS[family]()).encode(video))
    assert load_codec(folders / family, dtype=torch.bfloat16).dtype == torch.bfloat16
    codec.save_pretrained(tmp_path / "vae")
    assert torch.equal(load_codec(tmp_path / "vae").encode(video), codec.encode(video))


def refusal(folder) -> str:
    with pytest.raises(ModelError) as caught:
        load_codec(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def broken(folders, tmp_path):
    """A copy of a good folder, to be damaged."""
    return shutil.copytree(folders / "wan", tmp_path / "vae")


def test_missing_files_are_named(broken, tmp_path):
    assert "config.json' is missing" in refusal(tmp_path / "nowhere")
    weights = next(broken.glob("*.safetensors"))
    weights.rename(broken / "diffusion_pytorch_model.bin")
    assert "has no weights (diffusion_pytorch_model.bin: pickles are never opened)" in refusal(broken)
    (broken / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}})
    )
    assert "00001-of-00002.safetensors' is missing" in refusal(broken)


def test_damaged_weights_are_named(broken):
    weights = next(broken.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "cut short or no safetensors" in refusal(broken)
    weights.write_bytes(pickle.dumps({"encoder.conv_in.weight": [0.0] * 64}))
    assert "cut short or no safetensors" in refusal(broken)
    weights.write_bytes(b"")
    assert "cut short or no safetensors" in refusal(broken)


def test_weights_that_do_not_fill_the_model(broken):
    weights = next(broken.glob("*.safetensors"))
    tensors = {key: value.clone() for key, value in load_file(weights).items()}
    save_file({k: v for k, v in tensors.items() if k != "decoder.conv_in.weight"}, weights)
    assert "decoder.conv_in.weight" in refusal(broken)
    save_file(
        tensors | {"decoder.conv_in.weight": torch.full_like(tensors["decoder.conv_in.weight"], torch.nan)},
        weights,
    )
    assert "not finite, in decoder.conv_in.weight" in refusal(broken)
    save_file(tensors | {"decoder.conv_in.weight": torch.zeros(2, 2)}, weights)
    assert "cannot be loaded" in refusal(broken)


def test_folders_of_something_else(broken, folders):
    config = broken / "config.json"
    config.write_text(json.dumps({"_class_name": "AutoencoderKLMochi"}))
    assert (
        "holds a AutoencoderKLMochi: give a folder of AutoencoderKLHunyuanVideo or AutoencoderKLWan"
        in refusal(broken)
    )
    config.write_text("{")
    assert "config.json' is not JSON" in refusal(broken)
    with pytest.raises(ModelError, match="holds a AutoencoderKLHunyuanVideo, not a AutoencoderKLWan"):
        load_module(AutoencoderKLWan, folders / "hunyuan", torch.float32)
