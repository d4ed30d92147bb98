"""``framepack adopt``: bases of random weights become packed folders that load and compute as they did."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    WanTransformer3DModel,
)
from safetensors.torch import load_file, save_file
from torch import nn

from framepack.cli import main
from framepack.conditioning.embeds import Conditioning
from framepack.errors import OutputError
from framepack.models import draft, shards
from framepack.models.adopt import RESIDUAL_OUTPUTS, adopt
from framepack.models.families import BUCKETS, ROWS, family_row, spec_for
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.shards import Meter, Reader, Tensor, fill_shards, find_tensors, write_shards
from framepack.models.shift import RELEASED
from framepack.models.spec import BUNDLED, ModelSpec
from framepack.models.variants import VARIANTS, kept_layers, repeated_layers
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import ContextTensors, PackedContext
from framepack.packing.schedule import PackingSchedule

torch.set_num_threads(1)
CHANNELS, DOUBLE, SINGLE = 4, 4, 6
HUNYUAN = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": DOUBLE,
    "num_single_layers": SINGLE,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
}


@torch.no_grad()
def randomise(model: Any) -> Any:
    """Biases and norms too, so that a tensor in the wrong place shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models by name, and under ``folder`` their pipeline folders, in shards of at most 100 kB."""
    torch.manual_seed(0)
    found: dict[str, Any] = {
        "hunyuan": randomise(HunyuanVideoTransformer3DModel(**HUNYUAN)),
        "framepack": randomise(
            HunyuanVideoFramepackTransformer3DModel(
                **HUNYUAN | {"num_layers": 1, "num_single_layers": 1},
                has_image_proj=True,
                image_proj_dim=8,
                has_clean_x_embedder=True,
            )
        ),
        "wan": randomise(WanTransformer3DModel(**WAN)),
    }
    root = tmp_path_factory.mktemp("bases")
    for name, model in found.items():
        model.save_pretrained(root / name / "transformer", max_shard_size="100KB")
    found["wan"].save_pretrained(root / "single")
    return found | {"folder": root}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """``framepack adopt`` in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["framepack", "adopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def load(folder: Path) -> Any:
    """The transformer of a packed folder; fails where a key is missing or left over."""
    config = json.loads((folder / "transformer" / "config.json").read_text())
    cls = {
        "PackedWanTransformer3DModel": PackedWanTransformer3DModel,
        "PackedHunyuanVideoTransformer3DModel": PackedHunyuanVideoTransformer3DModel,
    }[config["_class_name"]]
    model, told = cls.from_pretrained(folder / "transformer", output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, CHANNELS, 3, 8, 12),
        "timestep": torch.full((batch,), 700.0),
        "prompt": torch.randn(batch, 5, 16),
        "pooled": torch.randn(batch, 8),
    }


@torch.no_grad()
def of_base(model: Any) -> torch.Tensor:
    x = inputs()
    if isinstance(model, WanTransformer3DModel):
        return model(x["hidden_states"], x["timestep"], x["prompt"]).sample
    mask = torch.ones(2, 5, dtype=torch.bool)
    scale = torch.full((2,), 10_000.0)
    return model(x["hidden_states"], x["timestep"], x["prompt"], mask, x["pooled"], guidance=scale).sample


@torch.no_grad()
def of_packed(
    model: Any, context: PackedContext | None = None, image: torch.Tensor | None = None
) -> torch.Tensor:
    x = inputs()
    conditioning = Conditioning(prompt=x["prompt"], pooled=x["pooled"], guidance=10.0, image=image)
    extra = {} if context is None else {"context": context, "positions": torch.arange(20, 23)}
    return model(x["hidden_states"], x["timestep"], conditioning, **extra)


def history(schedule: str = "td_f16k4f2k2f1k1") -> PackedContext:
    torch.manual_seed(2)
    at, levels = 0, []
    for level in PackingSchedule.parse(schedule).levels:
        latents = torch.randn(2, CHANNELS, level.frames, 8, 12)
        positions = torch.arange(at, at + level.frames)
        levels.append(ContextTensors(latents=latents, positions=positions, kernel=level.kernel))
        at += level.frames
    return PackedContext(levels=tuple(levels))


# The same function as before ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hunyuan", "wan"])
def test_with_empty_context_it_is_its_base_bit_for_bit(
    name: str, bases: dict[str, Any], tmp_path: Path
) -> None:
    told = adopt(bases["folder"] / name, tmp_path / "out", schedule="geometric")
    packed = load(tmp_path / "out")
    assert torch.equal(of_packed(packed), of_base(bases[name]))
    assert told.kernels_made == ["k1h2w2", "k1h4w2", "k1h4w4", "k1h8w4", "k1h8w8"] and not told.kernels_kept
    # One way to make kernels: what the file has is what the class itself makes.
    kernels = [tuple(kernel) for kernel in packed.config.context_kernels]
    own = type(packed).adopt(type(bases[name]).from_config(bases[name].config), tuple(kernels))
    patch = "patch_embedding" if name == "wan" else "x_embedder.proj"
    own.packing_kernels.initialise(bases[name].get_submodule(patch))
    for key, value in own.packing_kernels.state_dict().items():
        assert torch.equal(packed.packing_kernels.state_dict()[key], value), key
    assert torch.isfinite(of_packed(packed, history("td_f4k1h8w8f2k1h4w4f1k1"))).all()


def test_a_transformers_own_folder_of_one_file(bases: dict[str, Any], tmp_path: Path) -> None:
    told = adopt(bases["folder"] / "single", tmp_path / "out")
    assert torch.equal(of_packed(load(tmp_path / "out")), of_base(bases["wan"]))
    spec = ModelSpec.load(tmp_path / "out")
    assert (spec.default_method, str(spec.methods["f1"])) == ("f1", "f1k1_x_td_f16k4f2k2f1k1_g9")
    assert (told.base, told.shards, spec.name) == ("single", 1, "out")


def test_released_kernels_come_along(bases: dict[str, Any], tmp_path: Path) -> None:
    told = adopt(bases["folder"] / "framepack", tmp_path / "out", schedule="td_f1k1h4w4f16k4f2k2f1k1")
    assert told.kernels_kept == ["k1h2w2", "k2h4w4", "k4h8w8"] and told.kernels_made == ["k1h4w4"]
    packed = load(tmp_path / "out")
    torch.manual_seed(3)
    image = torch.randn(2, 6, 8)
    own = PackedHunyuanVideoTransformer3DModel.adopt(
        HunyuanVideoFramepackTransformer3DModel.from_pretrained(
            bases["folder"] / "framepack" / "transformer"
        ),
        ((1, 2, 2),),
    ).eval()
    assert torch.equal(of_packed(packed, history(), image), of_packed(own, history(), image))
    # What was adopted can be adopted again, with all it has.
    again = adopt(tmp_path / "out", tmp_path / "again", schedule="td_f1k1h8w8f1k1", methods=("vanilla",))
    assert again.kernels_kept == ["k1h2w2", "k2h4w4", "k4h8w8", "k1h4w4"] and again.kernels_made == ["k1h8w8"]
    assert list(ModelSpec.load(tmp_path / "again").methods) == ["vanilla"]
    assert torch.equal(
        of_packed(load(tmp_path / "again"), history(), image), of_packed(own, history(), image)
    )


def test_the_bundled_model_keeps_its_numbers(tmp_path: Path) -> None:
    told = adopt(BUNDLED, tmp_path / "out", schedule="td_f2k1h8w8f1k1h1w1", methods=("vanilla",))
    before, spec = ModelSpec.load(BUNDLED), ModelSpec.load(tmp_path / "out")
    assert (spec.fps, spec.buckets, spec.shift) == (before.fps, before.buckets, before.shift)
    assert spec.methods["vanilla"].max_gap == before.methods["vanilla"].max_gap
    assert set(told.parts) == {"codec", "conditioner"} and told.kernels_made == ["k1h8w8"]
    wanted = load_file(BUNDLED / "transformer" / "diffusion_pytorch_model.safetensors")
    made = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in wanted.items())


# Variants ----------------------------------------------------------------------------------------------


def test_layers_kept_and_repeated() -> None:
    assert kept_layers(20, 10) == (0, 2, 4, 6, 8, 11, 13, 15, 17, 19)
    assert kept_layers(40, 22)[:8] == (0, 2, 4, 6, 7, 9, 11, 13) and kept_layers(40, 22)[-3:] == (35, 37, 39)
    assert repeated_layers(20, 32)[:9] == (0, 0, 1, 1, 2, 3, 3, 4, 5)
    assert (kept_layers(5, 1), kept_layers(3, 3), repeated_layers(2, 2)) == ((0,), (0, 1, 2), (0, 1))
    for have in range(1, 30):
        for want in range(1, have + 1):
            kept = kept_layers(have, want)
            assert len(set(kept)) == want and sorted(kept) == list(kept) and {*kept} <= {*range(have)}
            gaps = [b - a for a, b in pairwise(kept)]
            assert not gaps or max(gaps) - min(gaps) <= 1
        for want in range(have, 3 * have):
            repeated = repeated_layers(have, want)
            counts = [repeated.count(i) for i in range(have)]
            assert len(repeated) == want and sorted(repeated) == list(repeated)
            assert min(counts) >= 1 and max(counts) - min(counts) <= 1


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_the_released_size_have_their_rows(variant: Any) -> None:
    double, single = variant.layers(20, 40)
    assert (len(double), len(single)) == (variant.double_blocks, variant.single_blocks)
    assert [len(order) for order in variant.layers(1, 1)] == {
        "lite": [1, 1],
        "base": [1, 1],
        "extended": [2, 2],
    }[variant.name]


def test_lite_is_its_base_without_some_layers(bases: dict[str, Any], tmp_path: Path) -> None:
    told = adopt(bases["folder"] / "hunyuan", tmp_path / "out", variant="lite")
    assert told.layers == {"transformer_blocks": [0, 3], "single_transformer_blocks": [0, 3, 5]}
    shorter = HunyuanVideoTransformer3DModel.from_pretrained(
        bases["folder"] / "hunyuan" / "transformer"
    ).eval()
    for stack, order in told.layers.items():
        setattr(shorter, stack, nn.ModuleList([getattr(shorter, stack)[index] for index in order]))
    packed = load(tmp_path / "out")
    assert torch.equal(of_packed(packed), of_base(shorter))
    assert str(ModelSpec.load(tmp_path / "out").methods["inverted"].schedule) == str(
        PackingSchedule.from_spec(f"f1k1_x_{VARIANTS['lite'].schedule()}")
    )
    assert torch.isfinite(of_packed(packed, history("td_f1k1h4w4f1k1"))).all()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4 became 2; dropped 1, 2; repeated none" in card and "6 became 3; dropped 1, 2, 4" in card
    assert "needs a fine-tune" in card and "`hunyuan`" in card and "blocks that the base relied on" in card


def test_extended_computes_what_its_base_computes(bases: dict[str, Any], tmp_path: Path) -> None:
    told = adopt(bases["folder"] / "hunyuan", tmp_path / "out", variant="extended")
    assert [len(order) for order in told.layers.values()] == [6, 9]
    packed = load(tmp_path / "out")
    assert (of_packed(packed) - of_base(bases["hunyuan"])).abs().max() <= 1e-5
    for stack, order in told.layers.items():
        for place, index in enumerate(order):
            repeat = place > 0 and order[place - 1] == index
            own = getattr(bases["hunyuan"], stack)[index].state_dict()
            for key, value in getattr(packed, stack)[place].state_dict().items():
                zero = repeat and key.rpartition(".")[0] in RESIDUAL_OUTPUTS[stack]
                assert torch.equal(value, torch.zeros_like(value) if zero else own[key]), (stack, place, key)
    assert (packed.config.num_layers, packed.config.num_single_layers) == (6, 9)
    assert torch.isfinite(of_packed(packed, history("td_f1k1h4w2f1k1"))).all()


# Files -------------------------------------------------------------------------------------------------


def test_memory_stays_below_two_shards(bases: dict[str, Any], tmp_path: Path) -> None:
    base = bases["folder"] / "hunyuan"
    assert len(list((base / "transformer").glob("*.safetensors"))) > 3
    for variant in ("base", "lite", "extended"):
        told = adopt(base, tmp_path / "out", variant=variant, overwrite=True)
        assert told.shards > 3
        assert 0 < told.peak_bytes < 2 * told.largest_shard_bytes, told
    small = adopt(base, tmp_path / "small", shard_bytes=20_000)
    assert small.shards > told.shards
    assert torch.equal(of_packed(load(tmp_path / "small")), of_base(bases["hunyuan"]))


def test_bytes_of_every_kind_are_copied(tmp_path: Path) -> None:
    """Several dtypes to a file, without dimensions, empty, and in pieces of a row."""
    torch.manual_seed(0)
    data = {
        "a": torch.randn(5, 3).to(torch.float8_e4m3fn),
        "b": torch.randn(4, 2, 3).to(torch.bfloat16),
        "c": torch.tensor(3.5),
        "d": torch.zeros(0, 3),
        "e": torch.arange(7),
        "f": torch.randn(9, 2),
        "g": torch.zeros(3, 3),
    }
    (tmp_path / "new").mkdir()
    save_file(data, tmp_path / "old.safetensors")
    tensors = find_tensors(tmp_path)
    meter = Meter()
    reader = Reader(8, meter)
    written: list[int] = []
    write_shards(
        tmp_path / "new",
        fill_shards(list(tensors.values()), 60),
        lambda t: () if t.name == "g" else reader.pieces(t),
        written.append,
    )
    reader.close()
    total = sum(value.nbytes for value in data.values())
    assert sum(written) == total and meter.live == 0 and meter.peak < total / 2
    files = sorted((tmp_path / "new").glob("*.safetensors"))
    index = json.loads((tmp_path / "new" / shards.INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == total and len(files) > 1
    for name, value in data.items():
        made = load_file(tmp_path / "new" / index["weight_map"][name])[name]
        assert made.dtype == value.dtype and made.shape == value.shape
        assert torch.equal(made.flatten().view(torch.uint8), value.flatten().view(torch.uint8)), name


def test_dtypes_stay(tmp_path: Path) -> None:
    """Kernels are of the patch embedding's dtype; what was kept in single precision stays so."""
    model = randomise(WanTransformer3DModel(**WAN)).to(torch.bfloat16)
    model.scale_shift_table.data = model.scale_shift_table.data.float()
    model.save_pretrained(tmp_path / "base")
    adopt(tmp_path / "base", tmp_path / "out")
    made = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    before = load_file(tmp_path / "base" / "diffusion_pytorch_model.safetensors")
    assert all(
        torch.equal(made[name], value) and made[name].dtype == value.dtype for name, value in before.items()
    )
    assert {made[name].dtype for name in made.keys() - before.keys()} == {torch.bfloat16}
    assert made["scale_shift_table"].dtype == torch.float32


def test_the_rest_of_the_pipeline_comes_along(bases: dict[str, Any], tmp_path: Path) -> None:
    base = tmp_path / "models--some--Base" / "snapshots" / "0123"
    shutil.copytree(bases["folder"] / "wan", base)
    (tmp_path / "blob").write_bytes(b"weights")
    for part in ("vae", "tokenizer", "scheduler"):
        (base / part).mkdir()
        (base / part / "config.json").write_text("{}")
    (base / "vae" / "diffusion_pytorch_model.safetensors").symlink_to(tmp_path / "blob")
    (base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (base / "LICENSE.txt").write_text("theirs")
    told = adopt(base, tmp_path / "out")
    assert told.parts == {"vae": {"linked": 1, "copied": 1}, "tokenizer": {"linked": 0, "copied": 1}}
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {f for f in files if not f.startswith("transformer/")} == {
        *("README.md", "LICENSE.txt", "framepack.json", "tokenizer/config.json", "vae/config.json"),
        "vae/diffusion_pytorch_model.safetensors",
    }
    linked = tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors"
    assert linked.samefile(tmp_path / "blob") and not linked.is_symlink()
    assert not (tmp_path / "out" / "vae" / "config.json").samefile(base / "vae" / "config.json")
    assert "base_model: some/Base" in (tmp_path / "out" / "README.md").read_text()


def test_another_disk_gets_copies(
    bases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["folder"] / "wan", base)
    (base / "vae").mkdir()
    (base / "vae" / "w.safetensors").write_bytes(b"weights")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    assert adopt(base, tmp_path / "out").parts == {"vae": {"linked": 0, "copied": 1}}
    assert (tmp_path / "out" / "vae" / "w.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("held", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_full_disk_leaves_the_place_as_it_was(
    held: bool, error: BaseException, bases: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = home / "deep" / "out"
    if held:
        adopt(bases["folder"] / "wan", out)
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    written = 0

    def fill(count: int) -> None:
        nonlocal written
        written += 1
        if written > 20:
            raise error

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError) as caught:
        adopt(
            bases["folder"] / "wan",
            out,
            schedule="duplicated",
            overwrite=True,
            on_bytes=lambda done, _: fill(done),
        )
    if not isinstance(error, KeyboardInterrupt):
        assert "No space left" in str(caught.value) and "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before
    assert held or not list(home.iterdir())


def test_too_little_room_is_told_first(
    bases: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(home)._replace(free=1000)
    monkeypatch.setattr(draft.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="free"):
        adopt(bases["folder"] / "wan", home / "out")
    assert not list(home.iterdir())


def test_what_overwrite_may_replace(bases: dict[str, Any], home: Path, run: Callable[..., Any]) -> None:
    base = bases["folder"] / "wan"
    (home / "out").mkdir()
    assert run("--base", base, "--out", "out")[0] == 0
    first = (home / "out" / "framepack.json").read_bytes()
    (home / "out" / "stale.txt").write_text("of the older model")
    (home / ".out.part" / "transformer").mkdir(parents=True)  # as a run that was killed leaves it
    code, _, err = run("--base", base, "--out", "out", "--schedule", "duplicated")
    assert code == 2 and "--overwrite" in err
    assert (home / "out" / "framepack.json").read_bytes() == first
    code, out, err = run("--base", base, "--out", "out", "--schedule", "duplicated", "--overwrite", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (
        told["out"] == "out"
        and told["family"] == "wan"
        and told["peak_bytes"] < 2 * told["largest_shard_bytes"]
    )
    assert (home / "out" / "framepack.json").read_bytes() != first and not (
        home / "out" / "stale.txt"
    ).exists()
    assert [p.name for p in home.iterdir()] == ["out"]
    (home / "photos").mkdir()
    (home / "photos" / "a.png").write_bytes(b"mine")
    code, _, err = run("--base", base, "--out", "photos", "--overwrite")
    assert code == 2 and "not a model's" in err and (home / "photos" / "a.png").exists()


# Bad input ---------------------------------------------------------------------------------------------


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard_of(folder: Path) -> Path:
    return sorted((folder / "transformer").glob("*.safetensors"))[1]


def nan_in(folder: Path) -> None:
    for path in (folder / "transformer").glob("*.safetensors"):
        tensors = load_file(path)
        if "blocks.1.ffn.net.2.weight" in tensors:
            tensors["blocks.1.ffn.net.2.weight"][-1, -1] = float("nan")
            save_file(tensors, path)


def escape_index(folder: Path) -> None:
    path = folder / "transformer" / shards.INDEX_NAME
    index = json.loads(path.read_text())
    index["weight_map"] = {name: f"../{file}" for name, file in index["weight_map"].items()}
    path.write_text(json.dumps(index))


def shorten_index(folder: Path) -> None:
    path = folder / "transformer" / shards.INDEX_NAME
    index = json.loads(path.read_text())
    del index["weight_map"]["proj_out.bias"]
    path.write_text(json.dumps(index))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "transformer" / "config.json").unlink(), "no transformer/config.json"),
    "config is no json": (lambda f: (f / "transformer" / "config.json").write_text("{"), "is not JSON"),
    "unknown class": (
        lambda f: edit_config(f, _class_name="FluxTransformer2DModel"),
        "FluxTransformer2DModel",
    ),
    "no class": (lambda f: edit_config(f, _class_name=None), "can be adopted"),
    "another family": (
        lambda f: edit_config(f, _class_name="HunyuanVideoTransformer3DModel"),
        "which is not known here",
    ),
    "another size": (
        lambda f: edit_config(f, ffn_dim=64),
        "blocks.0.ffn.net.0.proj.bias is (48,), not (64,)",
    ),
    "more layers": (lambda f: edit_config(f, num_layers=3), "absent"),
    "fewer layers": (lambda f: edit_config(f, num_layers=1), "absent"),
    "a string for a number": (lambda f: edit_config(f, in_channels="16"), "in_channels '16'"),
    "another patch": (lambda f: edit_config(f, patch_size=[1, 4, 4]), "patch size"),
    "image-to-video": (lambda f: edit_config(f, in_channels=36), "36 channels"),
    "quantised": (lambda f: edit_config(f, quantization_config={"bits": 4}), "quantization_config"),
    "two transformers": (lambda f: (f / "transformer_2").mkdir(), "two transformers"),
    "missing shard": (lambda f: shard_of(f).unlink(), "lacks shard"),
    "truncated shard": (lambda f: os.truncate(shard_of(f), shard_of(f).stat().st_size - 7), "cut short"),
    "empty shard": (lambda f: os.truncate(shard_of(f), 0), "cut short"),
    "pickle": (lambda f: torch.save({}, shard_of(f)), "pickle"),
    "old pickle": (lambda f: shard_of(f).write_bytes(b"\x80\x02}q\x00."), "pickle"),
    "git-lfs pointer": (
        lambda f: shard_of(f).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "cut short or no .safetensors",
    ),
    "index leads elsewhere": (escape_index, "weight_map"),
    "index forgets a tensor": (shorten_index, "proj_out.bias is absent"),
    "no index": (lambda f: (f / "transformer" / shards.INDEX_NAME).unlink(), "fetch that too"),
    "NaN": (nan_in, "NaN or infinite weights in blocks.1.ffn.net.2.weight"),
}


@pytest.mark.parametrize(("spoil", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_bases(
    spoil: Callable[[Path], object], words: str, bases: dict[str, Any], run: Any, home: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["folder"] / "wan", base)
    spoil(base)
    code, out, err = run("--base", base, "--out", "out", "--schedule", "temporal", "--json")
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and words in err, err
    assert list(home.iterdir()) == []


WRONG = [
    (["--schedule", "td_f16q4"], "does not parse"),
    (["--schedule", "cubic"], "geometric"),
    (["--schedule", "td_f1k1h3w3"], "no multiple of"),
    (["--schedule", "td_f1k64"], "latent pixels to a token"),
    (["--method", "sideways"], "unknown method 'sideways'"),
    (["--variant", "tiny"], "lite, extended"),
    (["--variant", "lite"], "size of HunyuanVideo"),
    (["--base", "nowhere"], "does not exist"),
    (["--base", "file"], "is a file"),
    (["--base", "empty"], "config.json"),
    (["--base", "pickled"], "pickled weights only"),
    (["--out", "file"], "is a file"),
    (["--out", "full"], "not a model's"),
    (["--out", "file/out"], "cannot be written"),
    (["--out", "/proc/none/out"], "cannot be written"),
    (["--out", "{base}"], "lie in each other"),
    (["--out", "{base}/transformer/out"], "lie in each other"),
    (["--out", "{base}/.."], "lie in each other"),
    (["--speed", "9"], "--speed"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_wrong_requests(
    arguments: list[str], words: str, bases: dict[str, Any], run: Any, home: Path
) -> None:
    base = bases["folder"] / "wan"
    (home / "file").write_text("mine")
    (home / "full").mkdir()
    (home / "full" / "notes.txt").write_text("mine")
    (home / "empty").mkdir()
    (home / "pickled").mkdir()
    shutil.copy(base / "transformer" / "config.json", home / "pickled")
    (home / "pickled" / "diffusion_pytorch_model.bin").write_bytes(b"")
    before = sorted(home.rglob("*")), sorted(base.rglob("*"))
    words_given = [a.format(base=base) for a in arguments]
    for name, value in (("--base", str(base)), ("--out", "out")):
        if name not in words_given:
            words_given += [name, value]
    code, out, err = run(*words_given)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and words in err, err
    assert (sorted(home.rglob("*")), sorted(base.rglob("*"))) == before


# Families ----------------------------------------------------------------------------------------------


def test_rows_of_the_families() -> None:
    """The published loops' own numbers."""
    expected = {
        "hunyuan-video": ("hunyuan_video", 16, 8, 30.0, 25, 1.0, 10.0, "inverted"),
        "wan-2.1": ("wan", 16, 8, 16.0, 50, 5.0, None, "f1"),
        "wan-2.2-5b": ("wan", 48, 16, 24.0, 50, 5.0, None, "f1"),
    }
    for name, row in ROWS.items():
        spec = spec_for(row.family, name, latent_channels=row.latent_channels)
        assert expected[name] == (
            *(spec.family, spec.latent_channels, spec.spatial_stride, spec.fps, spec.steps, spec.guidance),
            *(spec.embedded_guidance, spec.default_method),
        )
        method = spec.methods[spec.default_method]
        assert (method.section_size, spec.solver, spec.shift, spec.temporal_stride) == (
            9,
            "unipc",
            RELEASED,
            4,
        )
    assert family_row("wan", 4) is ROWS["wan-2.1"] and family_row("wan", 48) is ROWS["wan-2.2-5b"]
    assert spec_for("hunyuan_video", "x", guidance_embeds=False).embedded_guidance is None


def test_buckets_are_the_640_set() -> None:
    """Multiples of 32, each way round, within 7 % of the area of 640 x 640."""
    assert len(set(BUCKETS)) == 14 and {(w, h) for h, w in BUCKETS} == set(BUCKETS)
    for height, width in BUCKETS:
        assert height % 32 == 0 and width % 32 == 0
        assert abs(height * width / 640**2 - 1) < 0.07


def test_shards_keep_their_limit() -> None:
    tensors = [Tensor(name=str(i), dtype="F32", shape=(n,)) for i, n in enumerate([3, 3, 9, 1, 1, 1])]
    assert [[t.name for t in shard] for shard in fill_shards(tensors, 24)] == [
        ["0", "1"],
        ["2"],
        ["3", "4", "5"],
    ]
