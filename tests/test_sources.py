"""What a model's name can stand for, on tiny random weights, and every way in which it can be of no use."""

from __future__ import annotations

import errno
import fnmatch
import json
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from framepack.cli import main
from framepack.errors import FramePackError, ModelError, UnknownNameError
from framepack.models import hub
from framepack.models.base import read_base
from framepack.models.families import spec_for
from framepack.models.hunyuan_video import RELEASED_KERNELS, convert_state_dict
from framepack.models.loading import load_bundle, load_transformer
from framepack.models.single_file import load_state, read_config
from framepack.models.source import CONFIGS, PARTS, resolve_model
from framepack.models.wan import PackedWanTransformer3DModel
from tiny import save_tiny
from tiny_framepack import RELEASED_CLASS, framepack_transformer, picture, save_parts, save_released
from tiny_parts import wan_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
State = dict[str, torch.Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``parts``, and ``FramePackI2V_HY`` without them, as released."""
    folder = tmp_path_factory.mktemp("models")
    save_parts(folder / "parts")
    save_released(folder / "FramePackI2V_HY")
    return folder


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a hub that refuses connections."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


# Folders -----------------------------------------------------------------------------------------------


def test_the_released_folder_is_found_by_the_class_it_states(models) -> None:
    folder = models / "FramePackI2V_HY"
    assert json.loads((folder / "config.json").read_text())["_class_name"] == RELEASED_CLASS
    source = resolve_model(str(folder), [str(models / "parts")])
    spec = source.spec
    assert (source.layout, spec.family, source.parts, source.remarks) == (
        RELEASED_CLASS,
        "hunyuan_video",
        {},
        (),
    )
    assert (spec.fps, spec.steps, spec.guidance, spec.embedded_guidance) == (30.0, 25, 1.0, 10.0)
    assert str(spec.methods["inverted"]) == "f1k1_x_g9_f1k1f2k2f16k4_td"
    assert set(source.complete().parts) == set(PARTS["hunyuan_video"])
    state = load_transformer(source, torch.float32).state_dict()
    expected = convert_state_dict(framepack_transformer().state_dict())
    assert state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in state)
    assert read_base(folder).kernels == tuple(RELEASED_KERNELS.values())


@pytest.mark.parametrize(
    ("path", "method", "remarks"),
    [
        ("FramePackI2V_HY", "inverted", 0),
        ("FramePack_F1_I2V_HY_20250503", "f1", 0),
        ("f1/FramePackI2V_HY", "inverted", 0),
        ("models--lllyasviel--FramePack_F1_I2V_HY_20250503/snapshots/f1f1f1f1", "f1", 0),
        ("models--lllyasviel--FramePackI2V_HY/snapshots/0a1b", "inverted", 0),
        ("mine", "inverted", 1),
    ],
)
def test_the_method_follows_from_the_name(models, tmp_path, path, method, remarks) -> None:
    (tmp_path / path).mkdir(parents=True)
    shutil.copy(models / "FramePackI2V_HY" / "config.json", tmp_path / path)
    source = resolve_model(str(tmp_path / path))
    assert list(source.spec.methods) == [source.spec.default_method] == [method]
    assert len(source.remarks) == remarks and all(
        "--method f1 --untrained" in line for line in source.remarks
    )


def test_parts_are_taken_first_come_first_served(models, tmp_path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(models / "parts" / "vae", mine / "vae")
    found = (
        resolve_model(str(models / "FramePackI2V_HY"), [str(mine), str(models / "parts")]).complete().parts
    )
    assert found["vae"] == mine / "vae" and found["text_encoder"] == models / "parts" / "text_encoder"


# Single files ------------------------------------------------------------------------------------------


def as_fp8(state: State, scale: str | None) -> State:
    """Matrices in float8_e4m3fn, as such files have it: other weights stay in bfloat16."""
    made: State = {}
    for name, value in state.items():
        if value.dim() != 2 or "norm" in name:
            made[name] = value.bfloat16()
            continue
        factor = torch.ones(())
        if scale:
            amount = value.abs().amax(1, keepdim=True) if scale == "rows" else value.abs().max()
            factor = amount / 448
            suffix = "weight_scale" if scale == "rows" else "scale_weight"
            made[name.removesuffix("weight") + suffix] = factor.squeeze()
            made[name.removesuffix("weight") + "scale_input"] = torch.ones(())
        made[name] = (value / factor).to(torch.float8_e4m3fn)
    if scale:
        made["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return made


def as_original(state: State) -> State:
    """diffusers' names and tensors as HunyuanVideo's first release has them, FramePack's own as they are."""
    names = {
        "x_embedder": "img_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.mlp.0",
        "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.mlp.2",
        "context_embedder.time_text_embed.text_embedder": "txt_in.c_embedder",
        "context_embedder.proj_in": "txt_in.input_embedder",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    }
    inner = {
        "transformer_blocks.0.": {
            "attn.to_out.0": "img_attn_proj",
            "attn.to_add_out": "txt_attn_proj",
            "attn.norm_q": "img_attn_q_norm",
            "attn.norm_k": "img_attn_k_norm",
            "attn.norm_added_q": "txt_attn_q_norm",
            "attn.norm_added_k": "txt_attn_k_norm",
            "norm1.linear": "img_mod.linear",
            "norm1_context.linear": "txt_mod.linear",
            "ff.net.0.proj": "img_mlp.fc1",
            "ff.net.2": "img_mlp.fc2",
            "ff_context.net.0.proj": "txt_mlp.fc1",
            "ff_context.net.2": "txt_mlp.fc2",
        },
        "single_transformer_blocks.0.": {
            "attn.norm_q": "q_norm",
            "attn.norm_k": "k_norm",
            "norm.linear": "modulation.linear",
            "proj_out": "linear2",
        },
        "context_embedder.token_refiner.refiner_blocks.0.": {
            "attn.to_out.0": "self_attn_proj",
            "norm1": "norm1",
            "norm2": "norm2",
            "ff.net.0.proj": "mlp.fc1",
            "ff.net.2": "mlp.fc2",
            "norm_out.linear": "adaLN_modulation.1",
        },
    }
    outer = ("double_blocks.0.", "single_blocks.0.", "txt_in.individual_token_refiner.blocks.0.")
    for (block, layers), old in zip(inner.items(), outer, strict=True):
        names |= {block + new: old + layer for new, layer in layers.items()}
    fused = {
        "double_blocks.0.img_attn_qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        "double_blocks.0.txt_attn_qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
        "single_blocks.0.linear1": [
            *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
            "single_transformer_blocks.0.proj_mlp",
        ],
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": [
            f"context_embedder.token_refiner.refiner_blocks.0.attn.to_{x}" for x in "qkv"
        ],
    }
    left, made = dict(state), {}
    for old, layers in fused.items():
        for kind in ("weight", "bias"):
            made[f"{old}.{kind}"] = torch.cat([left.pop(f"{layer}.{kind}") for layer in layers])
    for name, value in left.items():
        layer = max((n for n in names if name.startswith(n + ".")), key=len, default=None)
        if name.startswith("norm_out.linear"):
            value = torch.cat(value.chunk(2)[::-1])
        made[name if layer is None else names[layer] + name.removeprefix(layer)] = value
    return made


FORMS: dict[str, Callable[[State], State]] = {
    "bf16": lambda state: {k: v.bfloat16() for k, v in state.items()},
    "fp8": lambda state: as_fp8(state, None),
    "fp8 scaled": lambda state: as_fp8(state, "one"),
    "fp8 scaled by rows": lambda state: as_fp8(state, "rows"),
    "prefixed": lambda state: {f"model.diffusion_model.{k}": v for k, v in state.items()},
    "prefixed fp8": lambda state: {f"diffusion_model.{k}": v for k, v in as_fp8(state, "one").items()},
    "original": as_original,
    "original fp8": lambda state: as_fp8(as_original(state), "one"),
}


@pytest.mark.parametrize("form", FORMS)
def test_single_files(models, tmp_path, form) -> None:
    """Weights come back as near as their precision allows, and the configuration is read off the header."""
    base = framepack_transformer()
    state = base.state_dict()
    file = tmp_path / "FramePackI2V_HY.safetensors"
    save_file({k: v.contiguous() for k, v in FORMS[form](state).items()}, file)
    config = read_config(file)
    told = {name: value for name, value in base.config.items() if name in config}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()} == told | {
        "_class_name": type(base).__name__
    }

    source = resolve_model(str(file), [str(models / "parts")])
    assert source.spec.default_method == "inverted" and source.transformer == file
    found, expected = load_transformer(source, torch.float32).state_dict(), convert_state_dict(state)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Half a step: 2^-9 in bfloat16, 2^-4 in float8_e4m3fn or, near zero, a part of the largest.
        near = 0 if form in ("prefixed", "original") else 2**-4 if "fp8" in form else 2**-8
        least = 2**-10 if form == "fp8" else near * value.abs().max() / 100
        torch.testing.assert_close(found[name], value, rtol=near, atol=float(least) if near else 0)


def test_fp8_without_scales_is_what_the_numbers_say(tmp_path) -> None:
    state = as_fp8(framepack_transformer().state_dict(), None)
    save_file(state, tmp_path / "m.safetensors")
    found = load_state(tmp_path / "m.safetensors", torch.bfloat16)
    assert all(torch.equal(found[k], v.bfloat16()) for k, v in state.items())


# The hub -----------------------------------------------------------------------------------------------


class Hub:
    """The hub with one repository, a local folder; it remembers what it was asked for."""

    def __init__(self, name: str, folder: Path, cache: Path) -> None:
        self.name, self.folder, self.asked = name, folder, []
        self.copy = cache / f"models--{name.replace('/', '--')}" / "snapshots" / ("c0ffee12" * 5)

    def model_info(self, repository: str, *, revision: str | None = None, timeout: float) -> SimpleNamespace:
        if repository != self.name:
            raise ConnectionError("no such host")
        return SimpleNamespace(sha=self.copy.name)

    def snapshot_download(self, repository, *, revision, allow_patterns, local_files_only=False) -> str:
        if local_files_only or repository != self.name:
            raise LocalEntryNotFoundError("not here")
        assert revision == self.copy.name, "held to a commit"
        files = [str(p.relative_to(self.folder)) for p in sorted(self.folder.rglob("*")) if p.is_file()]
        wanted = [f for f in files if any(fnmatch.fnmatch(f, pattern) for pattern in allow_patterns)]
        self.asked.append(wanted)
        for file in wanted:
            (self.copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / file, self.copy / file)
        return str(self.copy)


@pytest.fixture
def serve(tmp_path, monkeypatch) -> Callable[[str, Path], Hub]:
    def start(name: str, folder: Path) -> Hub:
        served = Hub(name, folder, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: served)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", served.snapshot_download)
        return served

    return start


def test_of_a_repository_only_configurations_are_fetched_before_it_is_wanted(models, serve) -> None:
    name = "lllyasviel/FramePackI2V_HY"
    served = serve(name, models / "FramePackI2V_HY")
    source = resolve_model(name, [str(models / "parts")])
    assert served.asked == [["config.json"]] and source.revision == served.copy.name
    assert source.spec.default_method == "inverted"
    bundle = load_bundle(source)
    assert served.asked[1:] == [["config.json", WEIGHTS]]
    assert bundle.spec.name == "FramePackI2V_HY"


def test_a_whole_pipeline_on_the_hub(models, serve, tmp_path) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(models / "parts", folder)
    shutil.copytree(models / "FramePackI2V_HY", folder / "transformer")
    torch.save({}, folder / "transformer" / "pytorch_model.bin")
    shutil.copytree(models / "FramePackI2V_HY", folder / "transformer_ema")
    served = serve("me/whole", folder)
    found = resolve_model("me/whole@main").complete()
    assert set(found.parts) == set(PARTS["hunyuan_video"])
    assert not [file for file in served.asked[-1] if file.endswith(".bin")]
    assert {Path(file).parts[0] for file in served.asked[-1]} == {"transformer", *PARTS["hunyuan_video"]}


def test_a_disk_that_is_full_is_not_taken_for_a_missing_network(serve, models, monkeypatch) -> None:
    serve("me/model", models / "FramePackI2V_HY")

    def full(*args, local_files_only=False, **kwargs):
        if local_files_only:
            return str(models)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(ModelError, match=r"hub's cache \(No space left on device\): free space there"):
        resolve_model("me/model")


def test_parts_of_a_wan_with_48_channels_are_those_of_wan_22(no_network, tmp_path) -> None:
    PackedWanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8, in_channels=48, out_channels=48
    ).save_config(tmp_path / "transformer")
    spec_for("wan", "five", latent_channels=48).save(tmp_path)
    with pytest.raises(ModelError, match=r"hf download Wan-AI/Wan2\.2-TI2V-5B-Diffusers"):
        resolve_model(str(tmp_path)).complete()


def test_what_is_of_no_use_is_refused_before_its_weights_are_fetched(serve, tmp_path) -> None:
    for name, config in (("me/base", {"_class_name": "HunyuanVideoTransformer3DModel"}), ("me/files", None)):
        folder = tmp_path / name
        (folder / "transformer").mkdir(parents=True)
        (folder / "large.safetensors").write_bytes(b"0" * 100)
        if config:
            (folder / "transformer" / "config.json").write_text(json.dumps(config))
        served = serve(name, folder)
        with pytest.raises(ModelError, match="adopt" if config else "give it in place of the repository"):
            resolve_model(name)
        assert not [file for files in served.asked for file in files if file not in CONFIGS]


def test_parts_from_a_repository_are_those_missing_and_no_more(models, serve, tmp_path) -> None:
    shutil.copytree(models / "parts", tmp_path / "all")
    shutil.copytree(models / "FramePackI2V_HY", tmp_path / "all" / "transformer")
    served = serve("hunyuanvideo-community/HunyuanVideo", tmp_path / "all")
    siglip = tmp_path / "siglip"
    for part in ("image_encoder", "feature_extractor"):
        shutil.copytree(models / "parts" / part, siglip / part)
    found = resolve_model(str(models / "FramePackI2V_HY"), [str(siglip)]).complete().parts
    assert found["image_encoder"].parent == siglip and found["vae"].parent == served.copy
    (asked,) = served.asked
    assert {file.split("/")[0] for file in asked} == set(PARTS["hunyuan_video"][:5])


def test_a_hub_out_of_reach_is_told_at_once_with_the_command(no_network) -> None:
    begun = time.monotonic()
    with pytest.raises(ModelError) as told:
        resolve_model("lllyasviel/FramePackI2V_HY@v1")
    assert "`hf download lllyasviel/FramePackI2V_HY --revision v1`" in str(told.value)
    assert time.monotonic() - begun < 5


def test_a_hub_that_does_not_answer_is_not_waited_for(no_network, monkeypatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(ModelError, match="cannot be reached"):
            resolve_model("lllyasviel/FramePackI2V_HY")
    assert 0.2 < time.monotonic() - begun < 5


def test_offline_mode_is_respected(no_network, monkeypatch, models) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    with pytest.raises(ModelError, match="hf download lllyasviel/FramePackI2V_HY"):
        resolve_model("lllyasviel/FramePackI2V_HY")
    commit = "0123456789" * 4
    folder = Path(constants.HF_HUB_CACHE) / "models--lllyasviel--FramePackI2V_HY"
    shutil.copytree(models / "FramePackI2V_HY", folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for name in ("lllyasviel/FramePackI2V_HY", f"lllyasviel/FramePackI2V_HY@{commit}"):
        source = resolve_model(name, [str(models / "parts")]).complete()
        assert source.revision == commit and (source.transformer / WEIGHTS).is_file()


def test_parts_that_only_the_hub_has_are_named(no_network, models) -> None:
    with pytest.raises(ModelError) as told:
        resolve_model(str(models / "FramePackI2V_HY")).complete()
    for words in ("has no vae, text_encoder", "--parts", "hf download hunyuanvideo-community/HunyuanVideo"):
        assert words in str(told.value)


def test_names_that_are_nothing(no_network, tmp_path) -> None:
    with pytest.raises(UnknownNameError, match=r"bundled, a model folder, a \.safetensors file, a hub id"):
        resolve_model("nobody")
    with pytest.raises(ModelError, match="does not exist"):
        resolve_model("weights/FramePackI2V_HY.safetensors")
    with pytest.raises(FramePackError, match="has neither"):
        resolve_model(str(tmp_path))


# Bad weights, through the command line -----------------------------------------------------------------


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retype(file: Path, change: Callable[[State], object]) -> None:
    state = load_file(file)
    change(state)
    save_file({k: v.clone() for k, v in state.items()}, file)


def poison(state: State) -> None:
    state["proj_out.bias"] = torch.full_like(state["proj_out.bias"], torch.nan)


def sharded(folder: Path) -> None:
    """The same weights in two files, of which the second is gone."""
    (folder / WEIGHTS).unlink()
    framepack_transformer().save_pretrained(folder, max_shard_size="100KB")
    edit(folder / "config.json", _class_name=RELEASED_CLASS)
    sorted(folder.glob("*.safetensors"))[1].unlink()


def plain(target: Path) -> Path:
    config = {k: v for k, v in framepack_transformer().config.items() if not k.startswith("_")}
    for name in ("has_image_proj", "image_proj_dim", "has_clean_x_embedder"):
        del config[name]
    base = HunyuanVideoTransformer3DModel(**config)
    if target.suffix:
        save_file(base.state_dict(), target)
    else:
        base.save_pretrained(target)
    return target


def another_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    size = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    UMT5EncoderModel(UMT5Config(vocab_size=99, **size)).save_pretrained(folder / "text_encoder")


def another_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    wan_vae(16).save_pretrained(folder / "vae")


def family_mix(folder: Path) -> None:
    save_tiny(folder.with_name("tiny"))
    shutil.copytree(folder, folder / "transformer")
    shutil.copy(folder.with_name("tiny") / "framepack.json", folder)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-64])


# What is done to a folder of the transformer, and words of the message.
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: cut(f / WEIGHTS), "cut short"),
    "text": (lambda f: (f / WEIGHTS).write_text("words"), "no safetensors file"),
    "pointer": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs"), "no safetensors file"),
    "renamed pickle": (lambda f: torch.save({}, f / WEIGHTS), "no safetensors file"),
    "pickle": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "pickles are never opened"),
    "missing shard": (sharded, "is missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
    "other class": (
        lambda f: edit(f / "config.json", _class_name="FluxTransformer2DModel"),
        "FluxTransformer2D",
    ),
    "other family": (family_mix, "is of family wan"),
    "other size": (lambda f: edit(f / "config.json", num_layers=2), "lacks"),
    "other width": (lambda f: edit(f / "config.json", num_attention_heads=3), "cannot be loaded"),
    "not json": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "nan": (lambda f: retype(f / WEIGHTS, poison), "not finite"),
    "base": (lambda f: plain(f), "framepack adopt"),
    "no spec": (lambda f: (f / "config.json").unlink(), "neither framepack.json"),
}
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut, "not a whole safetensors file"),
    "renamed pickle": (lambda f: torch.save({}, f), "pickled files are not read"),
    "nan": (lambda f: retype(f, poison), "not finite"),
    "base": (plain, "framepack adopt"),
    "lacking": (lambda f: retype(f, lambda state: state.pop("proj_out.bias")), "does not fill"),
    "other model": (lambda f: save_file({"a.weight": torch.ones(2)}, f), "is not a HunyuanVideo transformer"),
    "wan": (lambda f: save_file({"blocks.0.self_attn.q.weight": torch.ones(2)}, f), "a Wan transformer"),
}
OTHER_PARTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "has no text_encoder: add --parts"),
    "truncated text encoder": (lambda f: cut(f / "text_encoder" / "model.safetensors"), "cut short"),
    "other text encoder": (another_text_encoder, "text_encoder"),
    "other vae": (another_vae, "AutoencoderKLWan, not a AutoencoderKLHunyuanVideo"),
    "nan vae": (
        lambda f: retype(f / "vae" / WEIGHTS, lambda state: state["quant_conv.bias"].fill_(torch.nan)),
        "not finite",
    ),
    "other width": (
        lambda f: edit(f / "text_encoder_2" / "config.json", hidden_size=32),
        "pooled width is 16, the conditioner's is 32",
    ),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys, no_network) -> Callable[..., str]:
    """The one line that ``framepack generate`` ends with; nothing is written."""
    home = tmp_path / "home"
    home.mkdir()
    picture(64, 32).save(tmp_path / "start.png")
    monkeypatch.chdir(home)

    def call(*arguments: object) -> str:
        words = ["--image", "../start.png", "--prompt", "a red ball", "--frames", "5", "--steps", "1"]
        words += ["--size", "64x32", "--untrained", "--device", "cpu", "--dtype", "float32"]
        monkeypatch.setattr(sys, "argv", ["framepack", "generate", *words, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (2, ""), err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert list(home.iterdir()) == []
        return line

    return call


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folders(models, tmp_path, refused, case) -> None:
    change, words = FOLDERS[case]
    folder = tmp_path / "FramePackI2V_HY"
    shutil.copytree(models / "FramePackI2V_HY", folder)
    change(folder)
    assert words in refused("--model", folder, "--parts", models / "parts")


@pytest.mark.parametrize("case", FILES)
def test_bad_files(models, tmp_path, refused, case) -> None:
    change, words = FILES[case]
    file = tmp_path / "FramePackI2V_HY.safetensors"
    shutil.copy(models / "FramePackI2V_HY" / WEIGHTS, file)
    change(file)
    assert words in refused("--model", file, "--parts", models / "parts")


@pytest.mark.parametrize("case", OTHER_PARTS)
def test_bad_parts(models, tmp_path, refused, case) -> None:
    change, words = OTHER_PARTS[case]
    shutil.copytree(models / "parts", tmp_path / "parts")
    change(tmp_path / "parts")
    assert words in refused("--model", models / "FramePackI2V_HY", "--parts", tmp_path / "parts")


def test_parts_that_are_nothing(models, refused) -> None:
    model = models / "FramePackI2V_HY"
    assert "neither a folder nor a hub id" in refused("--model", model, "--parts", "nothing")
    assert "has no vae" in refused("--model", model, "--parts", models)
    assert "hf download me/parts" in refused("--model", model, "--parts", "me/parts")


def test_a_hub_id_on_the_command_line(refused) -> None:
    line = refused("--model", "lllyasviel/FramePackI2V_HY")
    assert "hub cannot be reached" in line and "hf download lllyasviel/FramePackI2V_HY" in line
