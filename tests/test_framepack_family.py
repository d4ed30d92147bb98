"""FramePack on HunyuanVideo, end to end on tiny random weights: against diffusers' pipeline, in and out."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.hooks import FirstBlockCacheConfig
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPTextModel, LlamaModel, SiglipVisionModel

from framepack import FramePackPipeline
from framepack.cli import main
from framepack.errors import InputError
from framepack.generation.hashing import section_seed
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.loading import move_companions
from framepack.models.shift import RELEASED, shift_for
from framepack.models.source import resolve_model
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.video.io import read_video
from tiny_framepack import CHANNELS, framepack_transformer, picture, save_parts, save_released

SEED, PROMPT, NEGATIVE = 7, "a red ball rolls", "the green grass while the sun sets"
WIDE = (96, 64)  # 8 x 12 latents: the axis of 12 is no multiple of the kernel of 8
SMALL = (32, 32)
SECTION = 36
"""Frames that a full section adds."""
METHODS = {"inverted_anti_drifting": "inverted", "vanilla": "f1"}


class Peer(HunyuanVideoFramepackPipeline):
    """diffusers' pipeline with our noise, and with the mode of the picture's posterior for a sample of it."""

    section = 0

    def prepare_latents(self, *args, generator=None, **kwargs):
        generator = torch.Generator().manual_seed(section_seed(SEED, self.section))
        self.section += 1
        return super().prepare_latents(*args, generator=generator, **kwargs)

    def prepare_image_latents(self, image, dtype=None, device=None, generator=None, latents=None):
        return self.vae.encode(image[:, :, None]).latent_dist.mode() * self.vae.config.scaling_factor


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``parts``; ``FramePackI2V_HY`` without them, as released; ``whole``, as diffusers saves a pipeline."""
    folder = tmp_path_factory.mktemp("models")
    save_parts(folder / "parts")
    save_released(folder / "FramePackI2V_HY")
    HunyuanVideoFramepackPipeline(**components(folder / "parts")).save_pretrained(folder / "whole")
    return folder


def components(parts: Path) -> dict[str, object]:
    return {
        "transformer": framepack_transformer(),
        "vae": AutoencoderKLHunyuanVideo.from_pretrained(parts / "vae").eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "tokenizer": AutoTokenizer.from_pretrained(parts / "tokenizer"),
        "text_encoder": LlamaModel.from_pretrained(parts / "text_encoder"),
        "tokenizer_2": AutoTokenizer.from_pretrained(parts / "tokenizer_2"),
        "text_encoder_2": CLIPTextModel.from_pretrained(parts / "text_encoder_2"),
        "image_encoder": SiglipVisionModel.from_pretrained(parts / "image_encoder"),
        "feature_extractor": AutoImageProcessor.from_pretrained(parts / "feature_extractor", backend="pil"),
    }


@pytest.fixture(scope="module")
def theirs(models: Path) -> Callable[..., torch.Tensor]:
    """What diffusers' pipeline makes: latents (C, N, h, w) or frames (F, H, W, 3)."""
    peer = Peer(**components(models / "parts"))
    peer.set_progress_bar_config(disable=True)

    def call(sampling_type: str, frames: int, size: tuple[int, int] = SMALL, **changes):
        peer.section = 0
        settings = {
            "image": picture(*size),
            "prompt": PROMPT,
            "width": size[0],
            "height": size[1],
            "num_frames": frames,
            "num_inference_steps": 2,
            "guidance_scale": 10.0,
            "output_type": "latent",
        }
        settings |= changes
        made = peer(**settings, sampling_type=sampling_type).frames
        return made[-1][0] if settings["output_type"] == "latent" else made[0]

    call.peer = peer
    return call


def load(folder: Path, **options) -> FramePackPipeline:
    return FramePackPipeline.from_pretrained(folder, torch_dtype=torch.float32, device="cpu", **options)


@pytest.fixture(scope="module")
def pipe(models: Path) -> FramePackPipeline:
    return load(models / "whole")


def ours(pipe: FramePackPipeline, frames: int, size: tuple[int, int] = SMALL, **changes):
    settings = {
        "prompt": PROMPT,
        "image": picture(*size),
        "num_frames": frames,
        "width": size[0],
        "height": size[1],
        "untrained": True,
        "num_inference_steps": 2,
        "solver": "euler",
        "seed": SEED,
        "output_type": "latent",
    }
    return pipe(**settings | changes).frames


# Parity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sections", [1, 3, 6])
@pytest.mark.parametrize("sampling_type", METHODS)
def test_untrimmed_latents_are_those_of_diffusers(theirs, pipe, sampling_type, sections) -> None:
    expected = theirs(sampling_type, 33 * sections, WIDE)
    found = ours(pipe, 1 + SECTION * sections, WIDE, method=METHODS[sampling_type])
    assert found.shape == (CHANNELS, 1 + 9 * sections, 8, 12)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_with_classifier_free_guidance_too(theirs, pipe) -> None:
    given = {"negative_prompt": NEGATIVE}
    expected = theirs("inverted_anti_drifting", 33, true_cfg_scale=2.0, **given)
    found = ours(pipe, 37, guidance_scale=2.0, **given)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_all_that_is_compared_counts(pipe) -> None:
    """Ten times the tolerance and more, so that none of it could be left out unseen."""
    base = ours(pipe, 37)
    for changed in (
        {"prompt": NEGATIVE},
        {"image": picture(*SMALL).rotate(180)},
        {"embedded_guidance": 1.0},
        {"seed": 8},
        {"guidance_scale": 2.0, "negative_prompt": NEGATIVE},
    ):
        assert (ours(pipe, 37, **changed) - base).abs().max() > 1e-2, changed
    two = [ours(pipe, 73, method=method) for method in ("inverted", "f1")]
    assert (two[0] - two[1]).abs().max() > 1e-2, "order"
    image = pipe.bundle.conditioner.encode([PROMPT], picture(*SMALL)).image
    text = pipe.bundle.conditioner.encode([PROMPT])
    assert image is not None and text.image is None
    assert (ours(pipe, 37, prompt="", prompt_embeds=text) - base).abs().max() > 1e-2, "image tokens"


def test_one_section_decodes_to_the_same_frames(theirs, pipe) -> None:
    expected = theirs("vanilla", 33, output_type="np")
    found = ours(pipe, 37, method="f1", output_type="np")
    assert found.shape == expected.shape == (37, 32, 32, 3)
    assert abs(found - expected).max() < 0.5 / 255 + 1e-3


# Where diffusers' pipeline differs ---------------------------------------------------------------------


def test_frames_asked_for_are_frames_made(theirs, pipe) -> None:
    """diffusers makes whole sections, and counts them by 33 frames where each adds 36."""
    made = theirs("vanilla", 91, num_inference_steps=1)
    assert 1 + 4 * (made.shape[1] - 1) == 109
    assert len(theirs("vanilla", 34, num_inference_steps=1, output_type="np")) == 73
    for method in METHODS.values():
        assert len(ours(pipe, 91, method=method, num_inference_steps=1, output_type="np")) == 91


def test_table_of_frames_in_the_documents() -> None:
    """What `test_frames_asked_for_are_frames_made` saw in two cases, for all that the page tells."""
    page = (Path(__file__).parent.parent / "docs" / "hunyuan-video.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d +]+) \| (\d+) \| (\d+) \|$", page, re.M)
    assert len(rows) == 5
    for asked, sections, made, by_diffusers in rows:
        timeline = Timeline(frames=int(asked), fps=30, stride=4, known=(0,))
        planned = plan(timeline, named_method("f1")).sections
        assert [len(section.frames) for section in planned] == [int(n) for n in sections.split(" + ")]
        assert int(made) == int(asked)
        assert int(by_diffusers) == 1 + SECTION * -(-int(asked) // 33)
    section = plan(Timeline(frames=301, fps=30, stride=4, known=(0,)), named_method("inverted"))
    for count in (9 * 30 * 52, section.context_tokens((60, 104), "history", "tail"), 30 * 52):
        assert f"{count:,}" in page


def test_arguments_that_diffusers_leaves_aside(theirs) -> None:
    forward, backward = theirs("vanilla", 33), theirs("inverted_anti_drifting", 33)
    assert torch.equal(theirs("vanilla", 33, prompt_2=NEGATIVE), forward)
    last = torch.ones(1, CHANNELS, 1, 4, 4)
    assert torch.equal(theirs("inverted_anti_drifting", 33, last_image_latents=last), backward)
    with pytest.raises(ValueError, match="Only one of"):
        theirs("vanilla", 33, image_latents=last)
    with pytest.raises(ValueError, match="incorrect format"):
        theirs("vanilla", 33, image_latents=last, image=None)
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        theirs("vanilla", 33, prompt=[PROMPT, NEGATIVE])
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        theirs("vanilla", 33, num_videos_per_prompt=2)


def test_a_scheduler_of_fixed_shift_ignores_the_one_computed(theirs, pipe) -> None:
    """At the released sizes both come to 7."""
    assert all(shift_for(RELEASED, 9 * h * w // 256) == pytest.approx(7) for h, w in pipe.spec.buckets)
    scheduler = theirs.peer.scheduler
    theirs.peer.scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    try:
        fixed = theirs("vanilla", 33)
    finally:
        theirs.peer.scheduler = scheduler
    assert (fixed - ours(pipe, 37, method="f1")).abs().max() > 1e-2


# Through the command line and back ---------------------------------------------------------------------

Run = Callable[..., dict]


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``framepack generate`` in this process: what ``--json`` says, with what went to standard error."""
    picture(80, 48).save(tmp_path / "start.png")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> dict:
        words = ["--image", "start.png", "--prompt", PROMPT, "--frames", "21", "--steps", "2"]
        words += ["--size", "64x32", "--untrained", "--device", "cpu", "--dtype", "float32", "--json"]
        words += ["--workdir", "run"]
        monkeypatch.setattr(sys, "argv", ["framepack", "generate", *words, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert not end.value.code, captured.err
        return json.loads(captured.out) | {"err": captured.err}

    return call


def left_by(workdir: str) -> list[torch.Tensor]:
    """The latents that a run left, in an order of their own: files are named by keys."""
    found = [tensor for file in Path(workdir).glob("latents/*") for tensor in load_file(file).values()]
    return sorted(found, key=lambda tensor: tensor.double().sum().item())


def test_a_diffusers_folder_makes_a_video_of_the_frames_asked_for(models, generate) -> None:
    told = generate("--model", models / "whole", "--out", "v.mp4")
    assert (told["frames"], told["fps"], told["cached"]) == (21, 30.0, False)
    video = read_video(Path("v.mp4"))
    frames = list(video.frames)
    assert len(frames) == 21 and frames[0].shape == (32, 64, 3)
    assert video.metadata["config"]["embedded_guidance"] == 10.0 and video.metadata["config"]["guidance"] == 1
    before = Path("v.mp4").read_bytes()
    again = generate("--model", models / "whole", "--out", "v.mp4")
    assert again["cached"] and Path("v.mp4").read_bytes() == before


def test_every_form_of_a_model_gives_the_same_latents(models, generate, tmp_path) -> None:
    """The released repository with parts from elsewhere, one file, and a folder saved from either."""
    saved = tmp_path / "saved"
    released = load(models / "FramePackI2V_HY", parts=[models / "parts"])
    released.save_pretrained(saved)
    assert resolve_model(str(saved)).layout == PackedHunyuanVideoTransformer3DModel.__name__
    file = tmp_path / "FramePackI2V_HY_float32.safetensors"
    save_file(framepack_transformer().state_dict(), file)

    generate("--model", models / "whole", "--out", "a.mp4", "--workdir", "a")
    expected = left_by("a")
    assert len(expected) == 2, "the picture and a section"
    ways = [
        ("b", models / "FramePackI2V_HY", "--parts", models / "parts"),
        ("c", saved),
        ("d", file, "--parts", models / "parts"),
    ]
    for name, *arguments in ways:
        generate("--model", *arguments, "--out", f"{name}.mp4", "--workdir", name)
        found = left_by(name)
        assert len(found) == len(expected) and all(map(torch.equal, found, expected)), name

    ask = {"num_inference_steps": 1, "method": "inverted"}
    assert torch.equal(ours(released, 21, **ask), ours(load(saved), 21, **ask))


def test_weights_named_f1_are_run_as_f1(models, generate, tmp_path) -> None:
    folder = tmp_path / "FramePack_F1_I2V_HY_20250503"
    shutil.copytree(models / "FramePackI2V_HY", folder)
    told = generate("--model", folder, "--parts", models / "parts", "--out", "v.mp4")
    method = read_video(Path("v.mp4")).metadata["config"]["method"]
    assert (method["order"], told["frames"]) == ("f1", 21)


def test_a_lora_of_a_trainer_acts_for_one_call(models, tmp_path) -> None:
    pipe, ask = load(models / "whole"), {"num_inference_steps": 1}
    layer, width = "lora_unet_double_blocks_0_img_attn_qkv", 64
    generator = torch.Generator().manual_seed(1)
    save_file(
        {
            f"{layer}.lora_down.weight": torch.randn(2, width, generator=generator),
            f"{layer}.lora_up.weight": torch.randn(3 * width, 2, generator=generator),
            f"{layer}.alpha": torch.tensor(2.0),
        },
        tmp_path / "lora.safetensors",
    )
    base = ours(pipe, 5, **ask)
    acted = ours(pipe, 5, loras=[f"{tmp_path / 'lora.safetensors'}:0.8"], **ask)
    assert (acted - base).abs().max() > 1e-2
    assert torch.equal(ours(pipe, 5, **ask), base)


def test_in_bfloat16_and_with_weights_kept_in_float8(models) -> None:
    folder = models / "whole"
    pipe = FramePackPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, device="cpu")
    ask = {"num_inference_steps": 1, "method": "f1"}
    exact, rounded = ours(load(folder), 5, **ask), ours(pipe, 5, **ask)
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).abs().max() < 0.1
    pipe = FramePackPipeline.from_pretrained(
        folder, torch_dtype=torch.bfloat16, device="cpu", memory="fp8-tiled"
    )
    state = pipe.transformer.state_dict()
    assert state["transformer_blocks.0.attn.to_q.weight"].dtype == torch.float8_e4m3fn
    assert state["packing_kernels.projections.k4h8w8.weight"].dtype == torch.bfloat16
    coarse = ours(pipe, 5, **ask)
    assert 0 < (coarse - rounded).abs().max() < 0.5
    assert len(ours(pipe, 5, output_type="np", **ask)) == 5


def test_an_adopted_base_needs_no_image_encoder(models, tmp_path) -> None:
    config = {k: v for k, v in framepack_transformer().config.items() if not k.startswith("_")}
    for name in ("has_image_proj", "image_proj_dim", "has_clean_x_embedder"):
        del config[name]
    base = HunyuanVideoTransformer3DModel(**config)
    packed = PackedHunyuanVideoTransformer3DModel.adopt(base, [(1, 2, 2), (2, 4, 4), (4, 8, 8)])
    folder = tmp_path / "adopted"
    shutil.copytree(models / "parts", folder, ignore=shutil.ignore_patterns("image_encoder", "feature_*"))
    packed.save_pretrained(folder / "transformer")
    load(models / "whole").spec.save(folder)
    pipe = load(folder)
    assert not pipe.bundle.conditioner.sees_picture
    assert len(ours(pipe, 5, num_inference_steps=1, output_type="np")) == 5


def test_without_a_picture_it_says_that_one_is_missed(pipe) -> None:
    made = pipe(PROMPT, num_frames=5, width=32, height=32, untrained=True, num_inference_steps=1, seed=SEED)
    assert len(made.frames) == 5 and any("--image" in warning for warning in made.warnings)


def test_encoders_are_loaded_once_for_all_prompts_of_a_run(models: Path, monkeypatch, tmp_path) -> None:
    """The prompt, the negative one, and one of a section that has its own: each encoder comes once."""
    from framepack.codecs import loading
    from framepack.conditioning import encoders
    from framepack.generation.prepare import prepare
    from framepack.generation.request import GenerateRequest

    fresh = load(models / "whole")
    loaded: list[str] = []

    def counting(kind, folder, *rest):
        loaded.append(kind.__name__)
        return loading.load_module(kind, folder, *rest)

    request = GenerateRequest(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        guidance=2.0,
        image=picture(32, 32),
        frames=41,
        size="32x32",
        untrained=True,
        steps=1,
        out=tmp_path / "v.mp4",
    )
    run = prepare(request, fresh.bundle)
    run.redo(0, prompt="the sun sets")
    monkeypatch.setattr(encoders, "load_module", counting)
    for _ in run.events():
        pass
    assert sorted(loaded) == ["CLIPTextModel", "LlamaModel", "SiglipVisionModel"]


def test_a_cache_of_blocks_begins_anew_with_each_section(models: Path) -> None:
    """At one step a section there is nothing to reuse, but for what the section before left."""
    pipe = load(models / "whole")
    plain = ours(pipe, 41, num_inference_steps=1)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    assert torch.equal(ours(pipe, 41, num_inference_steps=1), plain)


def test_embeddings_without_the_pooled_one(pipe) -> None:
    given = pipe.bundle.conditioner.encode([PROMPT])
    with pytest.raises(InputError, match=r"^prompt_embeds: pooled is absent, .* takes \(1, \d+\)"):
        pipe(image=picture(32, 32), prompt_embeds=given.prompt, num_frames=5)
    with pytest.raises(InputError, match=r"image is \(1, 2, 3\), .* takes \(1, tokens, \d+\)"):
        pipe(prompt_embeds=replace(given, image=torch.zeros(1, 2, 3)), num_frames=5)


def test_all_parts_move_with_the_model(models: Path) -> None:
    """Pretending that meta is a device that computes: the released VAE is in half precision there."""
    bundle = load(models / "whole").bundle
    bundle.conditioner.encode([PROMPT])
    move_companions(bundle, torch.device("meta"))
    assert (bundle.codec.device.type, bundle.codec.dtype) == ("meta", torch.float16)
    assert bundle.conditioner.device.type == "meta" and not bundle.conditioner._texts
