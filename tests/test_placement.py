"""Weights elsewhere until they are needed: the same video. Stored smaller: one that is known as another."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from framepack.cli import app
from framepack.errors import InputError, OutOfMemoryError
from framepack.generation import placement
from framepack.generation.pipeline import FramePackPipeline
from framepack.generation.placement import Turns, in_turns, layer_by_layer, place, stored
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import latents_of
from framepack.generation.selection import select
from framepack.models.bundle import Bundle
from framepack.models.loading import load_bundle
from framepack.models.source import resolve_model
from framepack.resources import machine
from framepack.resources.estimate import Estimate, estimate
from framepack.resources.fitting import RESERVE
from framepack.resources.hollow import find_architecture
from framepack.resources.machine import GB
from framepack.resources.policy import POLICIES
from framepack.resources.tally import bytes_of
from framepack.resources.weights import weigh
from tiny_clips import save_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["wan", "hunyuan_video"])
def model(request, tmp_path_factory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp("model") / request.param)


def latents(bundle: Bundle, folder: Path) -> torch.Tensor:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    values = {"prompt": "a ball", "image": picture, "frames": 17, "method": "f1", "steps": 1, "guidance": 2.0}
    run = prepare(GenerateRequest(**values, out=folder / "v.mp4", workdir=folder / "run"), bundle)  # type: ignore[arg-type]
    return latents_of(run, lambda event: None)


def weights_of(bundle: Bundle) -> int:
    """Bytes of the matrices in blocks."""
    named = bundle.transformer.named_parameters()
    blocks = ("blocks.", "transformer_blocks.", "single_transformer_blocks.")
    return bytes_of(w for name, w in named if name.startswith(blocks) and "norm" not in name and w.ndim == 2)


def test_where_weights_lie_changes_nothing(model, tmp_path):
    wanted = latents(load_bundle(str(model)), tmp_path / "full")
    turns = in_turns(load_bundle(str(model), computes=False), CPU)
    assert torch.equal(latents(turns, tmp_path / "turns"), wanted)
    layers = layer_by_layer(load_bundle(str(model), computes=False), CPU)
    assert torch.equal(latents(layers, tmp_path / "layers"), wanted)
    assert turns.digest == layers.digest == load_bundle(str(model)).digest
    assert turns.conditioner.streamed and turns.device == CPU  # type: ignore[attr-defined]


def test_one_module_at_a_time_is_on_the_device():
    first, second = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    homes = {name: tensor.data_ptr() for name, tensor in second.state_dict().items()}
    turns = Turns(CPU)
    turns.add(first, [first])
    turns.add(second, list(second))
    x = torch.randn(2, 3)
    wanted = second(first(x))

    def away() -> dict[str, bool]:
        return {name: tensor.data_ptr() != homes[name] for name, tensor in second.state_dict().items()}

    assert turns.present is second and all(away().values())
    found = first(x)
    assert turns.present is first and not any(away().values())
    assert torch.equal(second[1](second[0](found)), wanted) and all(away().values())
    turns.leave()
    assert not any(away().values()) and torch.equal(second(first(x)), wanted)


@pytest.mark.parametrize(("storage", "most", "close"), [("fp8", 0.26, 0.03), ("nf4", 0.13, 0.12)])
def test_weights_stored_smaller_are_another_model_that_is_near(model, storage, most, close, tmp_path):
    plain = load_bundle(str(model))
    wanted, whole = latents(plain, tmp_path / "full"), weights_of(plain)
    small = stored(load_bundle(str(model)), storage)
    assert small.digest not in (
        plain.digest,
        stored(load_bundle(str(model)), "fp8" if storage == "nf4" else "nf4").digest,
    )
    assert weights_of(small) < most * whole
    found = latents(small, tmp_path / storage)
    error = ((found - wanted).square().mean() / wanted.square().mean()).sqrt()
    assert 0 < error < close
    # In turns too: scales of 4 bits go with their weights.
    again = in_turns(stored(load_bundle(str(model)), storage), CPU)
    assert torch.equal(latents(again, tmp_path / "again"), found)


def test_what_is_packed_and_normed_is_stored_as_it_was(model):
    small = stored(load_bundle(str(model)), "nf4").transformer
    kinds = {name: type(part).__name__ for name, part in small.named_modules() if isinstance(part, nn.Linear)}
    rounded = [name for name, kind in kinds.items() if kind == "Linear4bit"]
    assert rounded and not any("packing_kernels" in name or "norm" in name for name in rounded)
    assert any("block" in name for name in rounded)


@pytest.mark.parametrize("storage", ["fp8", "nf4"])
def test_what_is_stored_smaller_is_what_an_estimate_says(model, storage):
    small = stored(load_bundle(str(model)), storage).transformer
    held = sum(tensor.nbytes for tensor in (*small.parameters(), *small.buffers()))
    states = (getattr(weight, "quant_state", None) for weight in small.parameters())
    held += sum(state.absmax.nbytes for state in states if state is not None)
    found = weigh(find_architecture(str(model)).hollow(dtype=torch.float32), storage, torch.float32)
    assert found.total == held
    # What steers all tokens alike is not rounded: of HunyuanVideo, a quarter of all weights.
    named = small.named_parameters()
    steering = [weight.dtype for name, weight in named if "norm" in name and "linear" in name]
    assert set(steering) <= {torch.float32} and bool(steering) == ("hunyuan" in model.name)


def test_a_policy_does_what_its_name_says(model):
    def placed(name: str) -> Bundle:
        return place(load_bundle(str(model)), POLICIES[name], CPU)

    assert placed("layers-tiled").codec.tiled and not placed("layers").codec.tiled  # type: ignore[attr-defined]
    assert placed("models-fp8").digest == stored(load_bundle(str(model)), "fp8").digest
    with pytest.raises(
        InputError, match="'layers-tiled' keeps weights in system memory, which an MPS device"
    ):
        place(replace(load_bundle(str(model))), POLICIES["layers-tiled"], torch.device("mps"))


def test_auto_is_what_fits_and_changes_least_and_refuses_before_loading(model, monkeypatch):
    request = GenerateRequest(model=str(model), prompt="a ball", seconds=1, memory="auto", untrained=True)
    source = resolve_model(str(model))
    selection = select(request, source.spec)
    counted: list[Estimate] = []

    def once(model: str, *, memory: float, **options: Any) -> Estimate:
        """What fits is all that another memory changes."""
        if not counted:
            counted.append(estimate(model, memory=memory, **options))
        choices = [replace(c, fits=c.device / GB + RESERVE <= memory) for c in counted[0].choices]
        return replace(counted[0], memory=memory * GB, choices=tuple(choices))

    def chosen(room: float, memory: str = "auto") -> str:
        monkeypatch.setattr(placement, "device_memory", lambda device: room + RESERVE * GB)
        return placement.policy_for(replace(request, memory=memory), source, selection, CUDA).name

    monkeypatch.setattr("framepack.resources.estimate.estimate", once)
    assert chosen(1e12) == "full"
    needs = {choice.policy.name: choice.device for choice in counted[0].choices}
    plain = {name: need for name, need in needs.items() if POLICIES[name].storage is None}
    assert chosen(needs["full"] + 1) == "full" and chosen(needs["full"] - 1) != "full"
    least = min(plain, key=plain.__getitem__)
    assert chosen(plain[least] + 1) in [name for name, need in plain.items() if need <= plain[least] + 1]
    with pytest.raises(InputError, match=r"needs 0\.0 GB of the GPU .*; here are 0\.5 GB and"):
        chosen(min(needs.values()) - 1)

    # By name: what the transformer takes alone is known before anything is read.
    weights = weigh(find_architecture(str(model)).hollow(dtype=torch.float32)).total
    monkeypatch.setattr(placement, "pick_dtype", lambda name, device: torch.float32)
    room = weights - RESERVE * GB
    assert chosen(room, "full") == "full" and chosen(room - 1, "layers") == "layers"
    small = next(choice for choice in counted[0].choices if choice.policy.name == "fp8")
    counted[0] = replace(counted[0], choices=(replace(small, device=-GB),))
    with pytest.raises(InputError, match=r"by memory policy .full., and cuda has 0\.0 GB: .* fp8, which"):
        chosen(room - 1, "full")


def test_a_cpu_is_estimated_for_auto_alone(model, monkeypatch):
    request = GenerateRequest(model=str(model), prompt="a ball", seconds=1, memory="auto", untrained=True)
    source = resolve_model(str(model))
    selection = select(request, source.spec)

    def chosen(**changes: Any) -> str:
        return placement.policy_for(replace(request, **changes), source, selection, CPU).name

    assert chosen() == "full"
    monkeypatch.setattr(placement, "device_memory", lambda device: 1e6)
    with pytest.raises(InputError, match=r"needs 0\.0 GB with --memory .* or --memory full to try it all"):
        chosen()
    assert chosen(memory="full") == chosen(devices=2) == "full"


def test_memory_that_runs_out_while_loading_is_told(model, monkeypatch):
    def no_memory(*values: Any, **options: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    # As diffusers meets it, where the folder must not be blamed for it.
    monkeypatch.setattr("diffusers.models.modeling_utils.ModelMixin.from_pretrained", no_memory)
    for memory in ("full", "fp8"):
        told = f"was loaded on cpu by memory policy '{memory}': framepack estimate"
        with pytest.raises(OutOfMemoryError, match=re.escape(told)):
            FramePackPipeline.from_pretrained(model, device="cpu", memory=memory)
    monkeypatch.setattr(placement, "device_memory", lambda device: 0)
    monkeypatch.setattr("framepack.generation.pipeline.pick_device", lambda name: CUDA)
    with pytest.raises(
        InputError, match=r"and cuda has 0\.0 GB: framepack estimate tells which policies fit"
    ):
        FramePackPipeline.from_pretrained(model, memory="models")


def test_a_container_has_what_it_may_have(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "LIMITS", (limit, tmp_path / "nothing"))
    whole = machine.system_memory()
    assert whole > 1e8
    for told, there in (("max", whole), (str(2**70), whole), ("1048576", 2**20)):
        limit.write_text(f"{told}\n")
        assert machine.system_memory() == there


def test_the_command_line_takes_a_policy_and_refuses_what_is_none(model, tmp_path):
    out = tmp_path / "v.mp4"
    asked = ["generate", "--model", str(model), "--prompt", "a ball", "--frames", "9", "--out", str(out)]
    told = CliRunner().invoke(app, [*asked, "--memory", "layer"])
    assert told.exit_code and "unknown memory policy 'layer'" in str(told.exception) and not out.exists()
    assert "the nearest is layers" in str(told.exception)
    done = CliRunner().invoke(app, [*asked, "--memory", "fp8-tiled"])
    assert done.exit_code == 0 and out.exists()
