"""The families' conditioners against diffusers' pipelines; encoders are loaded one at a time and freed."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoFramepackPipeline, WanPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_framepack import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.video_processor import VideoProcessor
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPTextModel,
    LlamaModel,
    SiglipVisionModel,
    UMT5EncoderModel,
)

import tiny_parts as tiny
from framepack.conditioning import encoders, hunyuan_video, wan
from framepack.conditioning.hunyuan_video import HunyuanVideoConditioner
from framepack.conditioning.wan import WanConditioner
from framepack.errors import ModelError

torch.set_num_threads(1)
TOKENS = 24
PROMPTS = ["a red ball rolls over the grass", "sun &amp;  snow, {braces}"]
LONG = "the green grass and the red ball " * 40


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory):
    return tiny.save_hunyuan_video(tmp_path_factory.mktemp("hunyuan"))


@pytest.fixture(scope="module")
def umt5(tmp_path_factory):
    return tiny.save_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def picture():
    values = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    return Image.fromarray(values)


def hunyuan_conditioner(parts, **options) -> HunyuanVideoConditioner:
    return HunyuanVideoConditioner(parts, prompt_tokens=TOKENS, **options)


def wan_conditioner(parts, **options) -> WanConditioner:
    return WanConditioner(parts, prompt_tokens=TOKENS, **options)


@pytest.fixture
def loads(monkeypatch):
    """Names of the encoders in order of loading; an encoder that is alive when another is loaded fails."""
    names: list[str] = []
    alive: list[weakref.ref] = []

    def load(kind, folder, dtype):
        assert not [ref() for ref in alive if ref() is not None], "two encoders in memory"
        module = load_module(kind, folder, dtype)
        names.append(kind.__name__)
        alive.append(weakref.ref(module))
        return module

    load_module = encoders.load_module
    monkeypatch.setattr(encoders, "load_module", load)
    yield names
    gc.collect()
    assert not [ref() for ref in alive if ref() is not None], "an encoder outlives its use"


def test_what_the_released_models_were_trained_with(hunyuan, umt5):
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    assert template == hunyuan_video.TEMPLATE_START + "{}" + hunyuan_video.TEMPLATE_END
    assert hunyuan_video.TEMPLATE_TOKENS == DEFAULT_PROMPT_TEMPLATE["crop_start"] == 95
    assert (hunyuan_video.PROMPT_TOKENS, hunyuan_video.CLIP_TOKENS, wan.PROMPT_TOKENS) == (256, 77, 512)
    assert WanConditioner(umt5).encode([""]).prompt.shape == (1, 512, tiny.WIDTH)


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS[:1], [*PROMPTS, LONG]], ids=["one", "batch, one cut"])
def test_hunyuan_video_reads_prompts_as_its_pipeline(hunyuan, prompts, loads):
    pipeline = HunyuanVideoFramepackPipeline(
        text_encoder=LlamaModel.from_pretrained(hunyuan["text_encoder"]).eval(),
        tokenizer=AutoTokenizer.from_pretrained(hunyuan["tokenizer"]),
        text_encoder_2=CLIPTextModel.from_pretrained(hunyuan["text_encoder_2"]).eval(),
        tokenizer_2=AutoTokenizer.from_pretrained(hunyuan["tokenizer_2"]),
        **dict.fromkeys(("transformer", "vae", "scheduler", "image_encoder", "feature_extractor")),
    )
    states, pooled, mask = pipeline.encode_prompt(prompts, device="cpu", max_sequence_length=TOKENS)
    ours = hunyuan_conditioner(hunyuan).encode(prompts)
    assert ours.prompt.shape == (len(prompts), TOKENS, tiny.WIDTH)
    assert torch.allclose(ours.prompt, states, atol=1e-5)
    assert torch.allclose(ours.pooled, pooled, atol=1e-5)
    assert ours.mask.dtype == torch.bool and torch.equal(ours.mask, mask.bool())
    assert not ours.mask[0].all() and (len(prompts) == 1 or ours.mask[-1].all())
    assert ours.image is None and loads == ["LlamaModel", "CLIPTextModel"]


@torch.no_grad()
def test_hunyuan_video_sees_pictures_as_its_pipeline(hunyuan, picture, loads):
    encoder = SiglipVisionModel.from_pretrained(hunyuan["image_encoder"]).eval()
    extractor = AutoImageProcessor.from_pretrained(hunyuan["feature_extractor"], backend="pil")
    pipeline = SimpleNamespace(image_encoder=encoder, feature_extractor=extractor)
    pixels = VideoProcessor(vae_scale_factor=8).preprocess(picture, picture.height, picture.width)
    # On its way through floats diffusers cuts n - 0.00001 to n - 1, which the released program, that hands
    # bytes over, does not: a thousandth more keeps every value.
    theirs = HunyuanVideoFramepackPipeline.encode_image(
        pipeline, (pixels + 1e-3).clamp(max=1), device="cpu", dtype=torch.float32
    )
    bytes_ = extractor(images=np.asarray(picture), return_tensors="pt")
    assert torch.allclose(encoder(**bytes_).last_hidden_state, theirs, atol=1e-4)
    conditioner = hunyuan_conditioner(hunyuan)
    ours = conditioner.encode(PROMPTS, picture)
    assert conditioner.sees_picture and ours.image.shape == (2, 16, tiny.WIDTH)
    assert torch.allclose(ours.image, theirs.expand(2, -1, -1), atol=1e-4)
    assert theirs.std() > 1e-3
    assert loads == ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"]


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS[:1], [*PROMPTS, LONG, ""]], ids=["one", "batch, one cut"])
def test_wan_reads_prompts_as_its_pipeline(umt5, prompts, loads):
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(umt5["tokenizer"]),
        text_encoder=UMT5EncoderModel.from_pretrained(umt5["text_encoder"]).eval(),
        vae=None,
        scheduler=None,
    )
    theirs, _ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=TOKENS, device="cpu"
    )
    ours = wan_conditioner(umt5).encode(prompts)
    assert torch.allclose(ours.prompt, theirs, atol=1e-5)
    assert (ours.prompt[0, -1] == 0).all() and (ours.prompt[0, 0] != 0).any()
    assert ours.mask is None and ours.pooled is None and ours.image is None
    assert loads == ["UMT5EncoderModel"]


def test_a_second_call_loads_nothing(hunyuan, umt5, picture, loads):
    for conditioner, names in (
        (hunyuan_conditioner(hunyuan), ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"]),
        (wan_conditioner(umt5), ["UMT5EncoderModel"]),
    ):
        loads.clear()
        both = conditioner.encode(PROMPTS, picture)
        assert loads == names
        again = conditioner.encode(PROMPTS[1:], picture)
        assert torch.equal(again.prompt, both.prompt[1:]) and loads == names
        conditioner.encode([*PROMPTS, "another"], picture)
        assert loads == names + names[:2], "SigLIP is not loaded for a new prompt"


def test_a_prompt_is_encoded_alike_beside_others_and_alone(hunyuan, umt5, picture):
    for make, parts in ((hunyuan_conditioner, hunyuan), (wan_conditioner, umt5)):
        both, alone = make(parts).encode(PROMPTS, picture), make(parts).encode(PROMPTS[1:], picture)
        assert torch.equal(both.prompt[1:], alone.prompt)
        assert both.pooled is None or torch.equal(both.pooled[1:], alone.pooled)


def test_another_picture_has_other_tokens(hunyuan, picture):
    conditioner = hunyuan_conditioner(hunyuan)
    here = conditioner.encode(PROMPTS[:1], picture).image
    there = conditioner.encode(PROMPTS[:1], Image.new("RGB", picture.size, (200, 30, 30))).image
    assert not torch.allclose(here, there, atol=1e-3)
    assert conditioner.encode(PROMPTS[:1]).image is None
    assert torch.equal(conditioner.encode(PROMPTS[:1], picture).image, here)


def test_a_model_that_does_not_look_at_pictures(hunyuan, umt5, picture):
    blind = {name: path for name, path in hunyuan.items() if "image" not in name and "feature" not in name}
    conditioner = hunyuan_conditioner(blind)
    assert not conditioner.sees_picture and conditioner.image_width is None
    assert conditioner.encode(PROMPTS[:1], picture).image is None
    assert not wan_conditioner(umt5).sees_picture


def test_memory_of_prompts_has_an_end(umt5, monkeypatch):
    monkeypatch.setattr(encoders, "KEPT", 2)
    conditioner = wan_conditioner(umt5)
    assert conditioner.encode(["one", "two", "three"]).prompt.shape[0] == 3
    assert list(conditioner._texts) == ["two", "three"]


def test_widths_are_read_without_weights(hunyuan, umt5, loads):
    conditioner = hunyuan_conditioner(hunyuan)
    assert (conditioner.width, conditioner.pooled_width, conditioner.image_width) == (tiny.WIDTH,) * 3
    assert wan_conditioner(umt5).width == tiny.WIDTH
    assert loads == []


def test_weights_in_another_dtype(hunyuan, umt5, picture):
    made = hunyuan_conditioner(hunyuan, dtype=torch.bfloat16).encode(PROMPTS, picture)
    assert {made.prompt.dtype, made.pooled.dtype, made.image.dtype} == {torch.bfloat16}
    assert made.mask.dtype == torch.bool
    assert wan_conditioner(umt5, dtype=torch.bfloat16).encode(PROMPTS).prompt.dtype == torch.bfloat16


def test_elsewhere_than_on_a_cpu_umt5_runs_in_bfloat16(umt5, monkeypatch):
    conditioner, asked = wan_conditioner(umt5), []
    first = conditioner.encode(PROMPTS)

    def run(*given, streamed):
        asked.append(given[2:4])
        return [first.prompt[:1]]

    monkeypatch.setattr(wan, "run_encoder", run)
    conditioner.to("cpu")
    conditioner.encode(PROMPTS)
    assert asked == [], "it has not moved, and remembers"
    conditioner.to("cuda")
    conditioner.encode(PROMPTS[:1])
    assert asked == [(torch.device("cuda"), torch.bfloat16)]


def test_encoders_brought_layer_by_layer_make_the_same(hunyuan, umt5, picture):
    for parts, make in ((umt5, wan_conditioner), (hunyuan, hunyuan_conditioner)):
        whole, again = make(parts).encode(PROMPTS, picture), make(parts)
        again.streamed = True
        streamed = again.encode(PROMPTS, picture)
        for name in ("prompt", "pooled", "image"):
            first, second = getattr(whole, name), getattr(streamed, name)
            assert (first is None and second is None) or torch.equal(first, second)


def test_a_folder_keeps_its_dtype(umt5, tmp_path):
    folder = tmp_path / "text_encoder"
    UMT5EncoderModel.from_pretrained(umt5["text_encoder"], dtype=torch.bfloat16).save_pretrained(folder)
    made = wan_conditioner(umt5 | {"text_encoder": folder}).encode(PROMPTS[:1])
    assert made.prompt.dtype == torch.bfloat16


def test_long_prompts_are_remarked_on_from_the_tokenizer_alone(hunyuan, umt5, loads):
    for conditioner in (hunyuan_conditioner(hunyuan), wan_conditioner(umt5)):
        assert conditioner.remarks([PROMPTS[0], "", PROMPTS[0]]) == []
        (line,) = conditioner.remarks([PROMPTS[0], LONG, LONG])
        assert "the prompt 'the green grass and the...' has " in line and " is left out" in line
        assert "\n" not in line
    assert loads == []


def test_the_longest_prompt_that_is_read_whole(hunyuan, umt5):
    for conditioner, room in ((hunyuan_conditioner(hunyuan), TOKENS), (wan_conditioner(umt5), TOKENS - 1)):
        assert conditioner.remarks(["0" * room]) == []
        assert (
            f"has {room + 1} tokens and the model reads {room}" in conditioner.remarks(["0" * (room + 1)])[0]
        )


def test_prompts_are_cleaned_as_wan_cleans_them(monkeypatch):
    for prompt in (" a &amp;lt; b\n\t c ", "plain", "&quot;x&quot;   y", "色の  球"):
        assert wan.clean(prompt) == prompt_clean(prompt)
    monkeypatch.setattr(wan, "_has_ftfy", lambda: True)
    monkeypatch.setitem(sys.modules, "ftfy", SimpleNamespace(fix_text=str.upper))
    assert wan.clean("a  b") == "A B"


def test_without_ftfy_letters_beyond_ascii_are_remarked_on(umt5, monkeypatch):
    conditioner = wan_conditioner(umt5)
    monkeypatch.setattr(wan, "_has_ftfy", lambda: False)
    assert any("pip install ftfy" in line for line in conditioner.remarks(["“quoted”"]))
    assert conditioner.remarks(["plain"]) == []
    monkeypatch.setattr(wan, "_has_ftfy", lambda: True)
    monkeypatch.setitem(sys.modules, "ftfy", SimpleNamespace(fix_text=str))
    assert conditioner.remarks(["“a”"]) == []


def test_a_tokenizer_that_splits_the_template_otherwise(hunyuan, loads):
    parts = hunyuan | {"tokenizer": hunyuan["tokenizer_2"]}
    other = hunyuan_conditioner(parts)
    with pytest.raises(
        ModelError, match="makes 96 tokens of HunyuanVideo's template, where its own makes 95"
    ):
        other.encode(PROMPTS)
    assert hunyuan_conditioner(parts, template_tokens=96).remarks(PROMPTS) == []
    assert loads == []


def test_a_byte_level_tokenizer_named_llama_is_read_as_bytes(hunyuan):
    """The released folder names LlamaTokenizer, whose own rules would lose the line breaks."""
    tokenizer = encoders.load_tokenizer(hunyuan["tokenizer"])
    assert (
        json.loads((hunyuan["tokenizer"] / "tokenizer_config.json").read_text())["tokenizer_class"]
        == "LlamaTokenizer"
    )
    assert tokenizer.decode(tokenizer("a\n\n  b", add_special_tokens=False).input_ids) == "a\n\n  b"


def copied(parts, tmp_path, name):
    shutil.copytree(parts[name], tmp_path / name)
    return parts | {name: tmp_path / name}, tmp_path / name


def loaded(weights) -> dict[str, torch.Tensor]:
    """Copies: those of `load_file` live in the file, which the tests write over."""
    return {key: value.clone() for key, value in load_file(weights).items()}


def refusal(call) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parts_that_are_not_there(hunyuan, umt5, tmp_path):
    few = {name: path for name, path in hunyuan.items() if name != "tokenizer_2"}
    assert "the model has no tokenizer_2" in refusal(lambda: hunyuan_conditioner(few))
    no_extractor = {name: path for name, path in hunyuan.items() if name != "feature_extractor"}
    assert "the model has no feature_extractor" in refusal(lambda: hunyuan_conditioner(no_extractor))
    gone = umt5 | {"text_encoder": tmp_path / "gone"}
    assert "gone' is missing" in refusal(lambda: wan_conditioner(gone))
    (tmp_path / "empty").mkdir()
    conditioner = wan_conditioner(umt5 | {"tokenizer": tmp_path / "empty"})
    assert "empty' has no tokenizer that can be read" in refusal(lambda: conditioner.encode(PROMPTS))
    blank = hunyuan_conditioner(hunyuan | {"feature_extractor": tmp_path / "empty"})
    assert "no image processor" in refusal(lambda: blank.encode(PROMPTS[:1], Image.new("RGB", (32, 32))))


def test_encoders_that_are_damaged(umt5, tmp_path):
    parts, folder = copied(umt5, tmp_path, "text_encoder")
    weights = folder / "model.safetensors"
    whole, tensors = weights.read_bytes(), loaded(weights)

    def told() -> str:
        return refusal(lambda: wan_conditioner(parts).encode(PROMPTS[:1]))

    weights.write_bytes(whole[:-100])
    assert "cut short or no safetensors" in told()
    torch.save(tensors, weights)
    assert "cut short or no safetensors" in told()
    weights.rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin: pickles are never opened" in told()
    lost = "encoder.final_layer_norm.weight"
    save_file({k: v for k, v in tensors.items() if k != lost}, weights, metadata={"format": "pt"})
    assert lost in told()
    save_file(tensors | {lost: tensors[lost] * torch.nan}, weights, metadata={"format": "pt"})
    assert "not finite" in told()
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    assert "holds a t5, not a umt5" in told()


def test_umt5_with_its_table_under_either_name(umt5, tmp_path):
    """Files name the table of tokens shared.weight or encoder.embed_tokens.weight; both are the same."""
    parts, folder = copied(umt5, tmp_path, "text_encoder")
    weights = folder / "model.safetensors"
    tensors = loaded(weights)
    names = {"shared.weight", "encoder.embed_tokens.weight"}
    (name,) = names & set(tensors)
    (other,) = names - {name}
    tensors[other] = tensors.pop(name)
    save_file(tensors, weights, metadata={"format": "pt"})
    here, there = wan_conditioner(umt5).encode(PROMPTS[:1]), wan_conditioner(parts).encode(PROMPTS[:1])
    assert torch.equal(here.prompt, there.prompt)
