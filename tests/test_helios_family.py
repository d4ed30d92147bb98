"""Helios from its diffusers folders: the latents and videos of diffusers' pipelines by our own way in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from framepack import FramePackPipeline
from framepack.cli import app
from framepack.codecs.video_vae import VideoCodec
from framepack.errors import InputError, ModelError
from framepack.generation.decode import decode_frames, to_uint8
from framepack.generation.hashing import section_seed
from framepack.generation.held import AS_HISTORY, AS_START, held_latents
from framepack.generation.request import GenerateRequest
from framepack.generation.selection import select
from framepack.models.pyramid import Pyramid, pyramid_of
from framepack.models.source import resolve_model
from framepack.models.spec import ModelSpec
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.sampling.guidance import cfg_zero_star
from framepack.sampling.helios import _generator_of, block_noise
from framepack.video.io import read_video
from tiny_parts import WIDTH, save_wan, wan_vae

torch.set_num_threads(1)
S, CLIP = 9, 33
SHORT = 3
PROMPT, NEGATIVE, SEED = "a red ball rolls over the green grass", "the sun sets", 5
BASE = HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
MID = HeliosScheduler(use_dynamic_shifting=True)
DISTILLED = HeliosDMDScheduler(use_dynamic_shifting=True)


def transformer() -> HeliosTransformer3DModel:
    torch.manual_seed(0)
    return HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=1,
        rope_dim=(8, 8, 8),
    ).eval()


def save_release(folder: Path, scheduler: object, **pipeline: bool) -> Path:
    """A release of random weights in the released layout."""
    folder.mkdir()
    save_wan(folder)
    wan_vae().save_pretrained(folder / "vae")
    transformer().save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")  # type: ignore[attr-defined]
    index = {
        "_class_name": "HeliosPyramidPipeline" if pipeline else "HeliosPipeline",
        "_diffusers_version": "0.37.0",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "HeliosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        **pipeline,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("helios")
    return {
        "base": save_release(root / "Helios-Base", BASE),
        "mid": save_release(root / "Helios-Mid", MID, is_cfg_zero_star=True, is_distilled=False),
        "distilled": save_release(
            root / "Helios-Distilled", DISTILLED, is_cfg_zero_star=False, is_distilled=True
        ),
    }


@pytest.fixture(scope="module")
def base(releases: dict[str, Path]) -> FramePackPipeline:
    return load(releases["base"])


def load(folder: Path) -> FramePackPipeline:
    return FramePackPipeline.from_pretrained(folder, torch_dtype=torch.float32, device="cpu")


def picture(width: int = 96, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def peer(kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """diffusers' pipeline on the same folder, with the noise of our run of `SEED`."""
    pipe = kind.from_pretrained(folder)  # type: ignore[attr-defined]
    pipe.set_progress_bar_config(disable=True)
    made = SimpleNamespace(sections=0, draw=None)

    def prepare_latents(batch, channels, height, width, frames, **settings):
        shape = (batch, channels, (frames - 1) // 4 + 1, height // 8, width // 8)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(section_seed(SEED, made.sections)))
        made.sections, made.draw = made.sections + 1, _generator_of(noise)
        return noise

    def sample_block_noise(batch, channels, frames, height, width, *rest):
        return block_noise((batch, channels, frames, height, width), (2, 2), 1 / 3, made.draw)

    monkeypatch.setattr(pipe, "prepare_latents", prepare_latents)
    # Without ftfy its own fails; these prompts are clean.
    monkeypatch.setattr(f"{kind.__module__}.prompt_clean", lambda text: text)
    if kind is HeliosPyramidPipeline:
        monkeypatch.setattr(pipe, "sample_block_noise", sample_block_noise)
    return pipe


def asked(frames: int, steps: int, guidance: float, width: int = 96) -> dict[str, object]:
    return {
        "num_frames": frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "negative_prompt": NEGATIVE if guidance > 1 else "",
        "height": 64,
        "width": width,
        "untrained": True,
        "seed": SEED,
    }


def theirs(settings: dict[str, object], **other: object) -> dict[str, object]:
    ours = ("untrained", "seed")
    return {name: value for name, value in settings.items() if name not in ours} | other


# The pipelines, reproduced -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 3])
def test_text_to_video_is_helios_base(chunks, base, releases, monkeypatch):
    settings = asked(CLIP * chunks, 3, 3.0)
    pipe = peer(HeliosPipeline, releases["base"], monkeypatch)
    expected = pipe(PROMPT, output_type="latent", **theirs(settings)).frames[0]
    found = base(PROMPT, output_type="latent", **settings).frames
    assert found.shape == (16, S * chunks, 8, 12)
    assert (found - expected).abs().max() < 1e-4, (found - expected).abs().max()


def test_the_video_is_that_of_helios_and_not_cut_short(base, releases, monkeypatch):
    settings = asked(2 * CLIP, 2, 1.0)
    pipe = peer(HeliosPipeline, releases["base"], monkeypatch)
    expected = pipe(PROMPT, output_type="np", **theirs(settings)).frames[0]
    found = base(PROMPT, output_type="np", **settings).frames
    # The peer cuts 66 frames, two videos of 4 n + 1, to one of 4 n + 1.
    assert len(found) == 66 and len(expected) == 65
    assert np.abs(found[:65] - expected).max() < 0.51 / 255 + 1e-3


def test_image_to_video_is_helios_base_on_the_same_picture_latents(base, releases, monkeypatch):
    """The start picture and the still history; the peer's noise on them is drawn otherwise."""
    settings, start = asked(1 + 2 * CLIP, 3, 3.0), picture()
    held = held_latents(base.bundle.codec, start, S, base.spec.held_start, SEED)
    pipe = peer(HeliosPipeline, releases["base"], monkeypatch)
    expected = pipe(
        PROMPT,
        output_type="latent",
        **theirs(settings, num_frames=2 * CLIP),
        image_latents=held[AS_START]()[None, :, None],
        fake_image_latents=held[AS_HISTORY]()[None, :, None],
        add_noise_to_image_latents=False,
    ).frames[0]
    found = base(PROMPT, start, output_type="latent", **settings).frames
    assert found.shape[1] == expected.shape[1] == 1 + 2 * S
    assert (found[:, 1:] - expected[:, 1:]).abs().max() < 1e-4
    # The video begins with the picture as it is; the peer's has no such frame.
    pixels = torch.from_numpy(np.array(start)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    assert torch.equal(found[:, 0], base.bundle.codec.encode(pixels)[0, :, 0])


def test_the_held_picture_is_as_the_peer_prepares_it(base, releases, monkeypatch):
    monkeypatch.setattr(
        "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample",
        lambda self, generator=None: self.mode(),
    )
    pipe, codec = peer(HeliosPipeline, releases["base"], monkeypatch), base.bundle.codec
    mean = torch.tensor(pipe.vae.config.latents_mean).view(1, 16, 1, 1, 1)
    std = 1 / torch.tensor(pipe.vae.config.latents_std).view(1, 16, 1, 1, 1)
    pixels = pipe.video_processor.preprocess(picture(), height=64, width=96)
    with torch.inference_mode():
        start, still = pipe.prepare_image_latents(pixels, mean, std, SHORT)
    plain = held_latents(codec, picture(), SHORT, (0.0, 0.0), SEED)
    assert torch.allclose(plain[AS_START](), start[0, :, 0], atol=1e-5)
    assert torch.allclose(plain[AS_HISTORY](), still[0, :, 0], atol=1e-5)
    assert (start - still).abs().max() > 1e-2
    noised = held_latents(codec, picture(), SHORT, (0.111, 0.135), SEED)
    for index, clean in ((AS_START, start[0, :, 0]), (AS_HISTORY, still[0, :, 0])):
        made = noised[index]()
        assert torch.equal(made, noised[index]())
        draw = torch.Generator().manual_seed(section_seed(SEED, index))
        torch.rand((), generator=draw)
        difference = torch.randn(made.shape, generator=draw) - clean
        sigma = ((made - clean) * difference).sum() / difference.square().sum()
        assert 0.111 <= sigma <= 0.135
        assert torch.allclose(made, clean + sigma * difference, atol=1e-5)


def test_text_to_video_is_helios_distilled(releases, monkeypatch):
    """Twice the steps in the first chunk, as the release's examples have it."""
    settings = asked(2 * CLIP, 6, 1.0, width=128)
    pipe = peer(HeliosPyramidPipeline, releases["distilled"], monkeypatch)
    expected = pipe(
        PROMPT,
        output_type="latent",
        **{k: v for k, v in theirs(settings).items() if k != "num_inference_steps"},
        pyramid_num_inference_steps_list=[2, 2, 2],
        is_amplify_first_chunk=True,
    ).frames[0]
    told: list[tuple[int, int]] = []
    found = load(releases["distilled"])(
        PROMPT,
        output_type="latent",
        on_event=lambda event: told.append((event.section, event.steps)) if hasattr(event, "step") else None,
        **{**settings, "num_inference_steps": None, "guidance_scale": None},
    ).frames
    assert (found - expected).abs().max() < 1e-4, (found - expected).abs().max()
    assert set(told) == {(0, 12), (1, 6)} and len(told) == 18


def test_text_to_video_is_helios_mid(releases, monkeypatch):
    """CFG-Zero*: two steps of the first stage go nowhere, the others scale the unconditional flow."""
    settings = asked(2 * CLIP, 9, 3.0, width=128)
    pipe = peer(HeliosPyramidPipeline, releases["mid"], monkeypatch)
    expected = pipe(
        PROMPT,
        output_type="latent",
        **{k: v for k, v in theirs(settings).items() if k != "num_inference_steps"},
        pyramid_num_inference_steps_list=[3, 3, 3],
    ).frames[0]
    found = load(releases["mid"])(PROMPT, output_type="latent", **settings).frames
    assert (found - expected).abs().max() < 1e-4, (found - expected).abs().max()


def test_cfg_zero_star_is_guidance_on_flows_of_equal_scale():
    torch.manual_seed(0)
    x, cond, uncond = torch.randn(3, 2, 4, 3, 5, 5)
    found = (x - cfg_zero_star(cond, uncond, x, 0.4, 3.0)) / 0.4
    flow, other = (x - cond) / 0.4, (x - uncond) / 0.4
    for i in range(2):
        scale = (flow[i] * other[i]).sum() / other[i].square().sum()
        assert torch.allclose(found[i], 3 * flow[i] - 2 * scale * other[i], atol=1e-4)


# Frames ------------------------------------------------------------------------------------------------


@examples(deadline=None)
@given(st.integers(1, 400), st.integers(1, 5), st.integers(1, 12), st.sampled_from([(), (0,)]))
def test_clips_hold_exactly_the_frames_asked_for(frames, stride, clip, known):
    timeline = Timeline(frames=frames, fps=24, stride=stride, known=known, clip=clip)
    indices = range(timeline.latent_frames)
    assert [frame for i in indices for frame in timeline.frames_of(i)] == list(range(frames))
    assert all(timeline.latent_of(frame) == i for i in indices for frame in timeline.frames_of(i))
    clips = list(timeline.clips())
    assert [i for each in clips for i in each] == list(indices)
    alone = 1 if known else 0
    assert [len(each) for each in clips[:alone]] == [1] * alone
    assert all(len(each) == clip for each in clips[alone:-1])
    # Each clip decodes to a first frame and a stride for every latent after it; only the last is cut.
    decoded = [1 + (len(each) - 1) * stride for each in clips]
    assert sum(decoded) == timeline.padded_frames == frames + timeline.trimmed_frames
    assert 0 <= timeline.trimmed_frames < stride


@pytest.mark.parametrize(
    ("frames", "known", "latents"),
    [(33, (), 9), (34, (), 10), (66, (), 18), (40, (), 12), (1, (0,), 1), (34, (0,), 10), (35, (0,), 11)],
)
def test_latents_of_helios(frames, known, latents):
    timeline = Timeline(frames=frames, fps=24, stride=4, known=known, clip=S)
    assert timeline.latent_frames == latents
    assert timeline.from_seconds(frames / 24, fps=24, stride=4, known=known, clip=S) == timeline


def test_clips_are_the_sections_and_have_no_place_for_keyframes(releases):
    spec = resolve_model(str(releases["base"])).spec
    for image, frames in ((None, 132), (picture(), 150), (picture(), 1)):
        found = select(GenerateRequest(frames=frames, image=image), spec)
        spans = [section.frames for section in found.plan.sections]
        clips = [tuple(clip) for clip in found.timeline.clips()]
        assert clips == ([] if image is None else [(0,)]) + spans
    for wrong in ({"known": (3,)}, {"known": (0, -1)}, {"clip": 0}):
        with pytest.raises(InputError):
            Timeline(**{"frames": 66, "fps": 24, "stride": 4, "clip": S, **wrong})


def test_each_section_is_decoded_by_itself():
    codec = VideoCodec(wan_vae().requires_grad_(False))
    latents = torch.randn(1, 16, 13, 2, 3, generator=torch.Generator().manual_seed(0))
    timeline = Timeline(frames=1 + CLIP + 7, fps=24, stride=4, known=(0,), clip=S)
    frames = list(decode_frames(codec, lambda at: latents[:, :, list(at)], timeline))
    assert len(frames) == 41
    clips = [codec.decode(latents[:, :, at]) for at in (slice(0, 1), slice(1, 10), slice(10, 13))]
    expected = to_uint8(torch.cat(clips, dim=2)[0]).numpy()[:41]
    assert np.abs(np.stack(frames).astype(int) - expected).max() <= 1, "rounding may tip a level"


# The way in --------------------------------------------------------------------------------------------


def test_what_the_folders_are_taken_for(releases):
    specs = {name: resolve_model(str(folder)).spec for name, folder in releases.items()}
    assert [(s.solver, s.steps, s.guidance) for s in specs.values()] == [
        ("unipc2", 50, 5.0),
        ("pyramid", 60, 5.0),
        ("pyramid", 6, 1.0),
    ]
    for spec in specs.values():
        assert (spec.fps, spec.buckets, spec.decode, spec.sigmas) == (24, ((384, 640),), "section", "helios")
        (method,) = spec.methods.values()
        assert (str(method), method.history_timestep) == ("f1k1_x_td_f16k4f2k2f1k1_g9", "zero")
    assert specs["base"].pyramid is None
    mid, distilled = specs["mid"].pyramid, specs["distilled"].pyramid
    assert (mid.distilled, mid.time_shift, mid.cfg_zero, mid.zero_steps) == (False, "exponential", True, 2)
    assert (distilled.distilled, distilled.time_shift, distilled.first_factor) == (True, "linear", 2)


@pytest.mark.parametrize("name", ["base", "distilled"])
def test_saved_and_loaded_it_is_the_same(name, releases, tmp_path):
    pipe = load(releases[name])
    settings = {**asked(20, 3, 1.0, width=128), "num_inference_steps": 3}
    made = pipe(PROMPT, output_type="latent", **settings).frames
    pipe.save_pretrained(tmp_path / "saved")
    assert ModelSpec.load(tmp_path / "saved") == pipe.spec
    again = load(tmp_path / "saved")(PROMPT, output_type="latent", **settings).frames
    assert torch.equal(made, again)


def test_the_command_line_makes_exactly_the_frames_asked_for(releases, tmp_path):
    picture().save(tmp_path / "start.png")
    words = ["generate", "--model", str(releases["base"]), "--prompt", PROMPT, "--frames", "41", "--json"]
    words += ["--image", str(tmp_path / "start.png"), "--size", "96x64", "--untrained", "--steps", "2"]
    words += ["--device", "cpu", "--dtype", "float32", "--guidance", "1", "--out", str(tmp_path / "v.mp4")]
    first, second = (CliRunner().invoke(app, words) for _ in range(2))
    assert first.exit_code == 0, first.output
    told = [json.loads(result.stdout.strip().splitlines()[-1]) for result in (first, second)]
    assert [(one["frames"], one["sections"]) for one in told] == [(41, 2)] * 2
    assert [one["cached"] for one in told] == [False, True]
    video = read_video(tmp_path / "v.mp4")
    assert video.fps == 24 and sum(1 for _ in video.frames) == 41
    config = json.loads((tmp_path / "v.json").read_text())["config"]
    assert (config["sigmas"], config["solver"]) == ("helios", "unipc2")


def test_without_a_scheduler_it_is_taken_for_base(releases, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "transformer").symlink_to(releases["mid"] / "transformer")
    found = resolve_model(str(tmp_path / "x"))
    assert found.spec.pyramid is None and "taken for Helios-Base" in found.remarks[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "UniPCMultistepScheduler"}, "HeliosScheduler or HeliosDMDScheduler"),
        ({"solver_order": 3}, "solver_order is 3"),
        ({"stage_range": [0, 0.7, 0.3, 1]}, "must rise"),
        ({"time_shift_type": "cubic"}, "time shift 'cubic'"),
        ({"gamma": "much"}, "none of Helios's"),
        ({"stages": 1, "time_shift_type": "linear"}, "one stage"),
    ],
)
def test_schedulers_that_helios_has_not(change, words):
    with pytest.raises(ModelError, match=words) as caught:
        pyramid_of({**MID.config, "_class_name": "HeliosScheduler", **change}, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 7}, "multiple of 3"),
        ({"size": "96x64", "untrained": True}, "multiples of 8"),
    ],
)
def test_what_a_pyramid_cannot_do(change, words, releases):
    spec = resolve_model(str(releases["distilled"])).spec
    with pytest.raises(InputError, match=words):
        select(GenerateRequest(**change), spec)


def test_a_pyramid_has_its_own_solver(releases, base):
    with pytest.raises(InputError, match="sampled in a pyramid"):
        load(releases["distilled"])(PROMPT, **{**asked(9, 3, 1.0, width=128), "solver": "euler"})
    with pytest.raises(InputError, match="unknown solver 'pyramid'"):
        base(PROMPT, **{**asked(9, 2, 1.0), "solver": "pyramid"})


def test_a_pyramid_survives_json():
    pyramid = Pyramid(distilled=True, time_shift="linear", first_factor=2)
    from dataclasses import asdict

    assert Pyramid.from_json(json.loads(json.dumps(asdict(pyramid)))) == pyramid
    for broken in ({}, {"distilled": True}, {**asdict(pyramid), "colour": 1}):
        with pytest.raises(InputError):
            Pyramid.from_json(broken)


def test_the_plan_of_text_to_video_is_f1(releases):
    spec = resolve_model(str(releases["base"])).spec
    timeline = Timeline(frames=3 * CLIP, fps=24, stride=4, clip=S)
    sections = plan(timeline, spec.method(None)).sections
    assert [section.frames for section in sections] == [tuple(range(k * S, k * S + S)) for k in range(3)]
    assert {section.positions for section in sections} == {tuple(range(20, 29))}
