"""A transformer split among devices: blocks in one place each, tokens led on from one to the next.

There are no two GPUs here. Where weights go is seen on a CPU and the meta device. That all tensors are where
they are computed with is seen on two devices that PyTorch pretends to have (FakeTensorMode): tensors without
data, which refuse to be mixed as those of two GPUs do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from framepack.cli import app
from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError
from framepack.generation.placement import place, policy_for, stored
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import latents_of
from framepack.generation.selection import select
from framepack.generation.splitting import devices_for, lead, place_blocks, split
from framepack.models.history_attention import TimeOrder
from framepack.models.loading import load_bundle
from framepack.models.lora import Lora, apply_loras
from framepack.models.source import resolve_model
from framepack.models.step_cache import StepCache, step_cache
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import ContextTensors, Memory, PackedContext
from framepack.resources.companions import encoders
from framepack.resources.division import divide
from framepack.resources.estimate import Estimate, estimate
from framepack.resources.hollow import find_architecture
from framepack.resources.policy import POLICIES
from framepack.resources.weights import weigh
from test_isolated_history import CHANNELS, GRID, HISTORY, KERNELS, WIDTH, hunyuan, shaken, wan
from tiny_clips import save_model

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, META = torch.device("cpu"), torch.device("meta")
CARDS = (torch.device("meta", 0), torch.device("meta", 1))


# Divided -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=7), st.lists(st.integers(0, 60), min_size=1, max_size=4)
)
def test_blocks_are_divided_in_order_and_no_other_way_holds_less(blocks, held):
    if len(blocks) < len(held):
        with pytest.raises(
            InputError, match=f"{len(blocks)} layers cannot be split among {len(held)} devices"
        ):
            divide(blocks, held)
        return
    shares = divide(blocks, held)
    assert [number for share in shares for number in share] == [*range(len(blocks))]
    assert all(len(share) for share in shares) and len(shares) == len(held)

    def most(ends: tuple[int, ...]) -> int:
        cuts = (0, *ends, len(blocks))
        return max(own + sum(blocks[a:b]) for own, a, b in zip(held, cuts, cuts[1:], strict=False))

    found = most(tuple(share.stop for share in shares[:-1]))
    assert found == min(map(most, combinations(range(1, len(blocks)), len(held) - 1)))


# In its places -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["wan", "hunyuan_video"])
def model(request, tmp_path_factory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model("wan", tmp_path_factory.mktemp("model") / "wan")


def test_every_weight_is_on_the_device_of_its_block_and_all_else_on_the_first(model):
    bundle = load_bundle(str(model), computes=False)
    before = {name: tensor.data_ptr() for name, tensor in bundle.transformer.named_parameters()}
    stack = bundle.transformer.stack
    blocks = [f"{name}." for name, part in bundle.transformer.named_modules() if part in stack]
    made = split(bundle, (CPU, META))
    found = {name: tensor.device for name, tensor in made.transformer.named_parameters()}
    assert found.keys() == before.keys()
    kept = 0
    for name, device in found.items():
        block = next((n for n, prefix in enumerate(blocks) if name.startswith(prefix)), None)
        assert device == (META if block is not None and block >= 1 else CPU), name
        if device == CPU:  # what stays is what was read: it is not there twice
            assert made.transformer.get_parameter(name).data_ptr() == before[name]
            kept += 1
    assert 0 < kept < len(found) and len(blocks) == 2
    assert (made.device, made.devices) == (CPU, (CPU, META)) and made.digest == bundle.digest
    assert {p.device for p in made.codec.parameters()} == {META}  # type: ignore[attr-defined]


def test_devices_have_as_many_bytes_as_blocks_allow():
    deep = deep_wan()
    sizes = [sum(p.nbytes for p in block.parameters()) for block in deep.stack]
    rest = sum(p.nbytes for p in deep.parameters()) - sum(sizes)
    shares = divide(sizes, [rest, 0, 0])
    held = [sum(sizes[n] for n in share) for share in shares]
    held[0] += rest
    assert max(held) - min(held) <= max(max(sizes), rest)
    places = (CPU, META, CPU)
    place_blocks(deep, shares, places)
    for share, device in zip(shares, places, strict=True):
        assert all({p.device for p in deep.stack[n].parameters()} == {device} for n in share)


def latents(bundle: Any, folder: Path) -> torch.Tensor:
    asked: dict[str, Any] = {"prompt": "a ball", "frames": 9, "method": "f1", "steps": 1, "guidance": 2.0}
    places = {"untrained": True, "out": folder / "v.mp4", "workdir": folder / "run"}
    return latents_of(prepare(GenerateRequest(**asked, **places), bundle), lambda event: None)


def test_the_latents_are_those_of_one_device(model, tmp_path):
    wanted = latents(load_bundle(str(model)), tmp_path / "full")
    made = split(load_bundle(str(model), computes=False), (CPU, CPU))
    assert all(hasattr(block, "_hf_hook") for block in made.transformer.stack)
    assert torch.equal(latents(made, tmp_path / "split"), wanted)


def test_what_is_split_may_be_stored_smaller(folder, tmp_path):
    wanted = latents(stored(load_bundle(str(folder)), "fp8"), tmp_path / "fp8")
    small = place(load_bundle(str(folder)), POLICIES["split-fp8-tiled"], CPU, 2)
    assert small.codec.tiled and small.conditioner.streamed  # type: ignore[attr-defined]
    assert torch.equal(latents(small, tmp_path / "small"), wanted)


def test_a_lora_acts_where_its_blocks_are(folder, tmp_path):
    plain = load_bundle(str(folder))
    tensors: dict[str, torch.Tensor] = {}
    for number, block in enumerate(plain.transformer.stack):
        name, (rows, columns) = f"transformer.blocks.{number}.attn1.to_q", block.attn1.to_q.weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.ones(2, columns)
        tensors[f"{name}.lora_B.weight"] = torch.ones(rows, 2)
    save_file(tensors, tmp_path / "style.safetensors")
    loras = [Lora(tmp_path / "style.safetensors")]
    without = latents(plain, tmp_path / "without")
    apply_loras(plain.transformer, loras)
    wanted = latents(plain, tmp_path / "full")
    assert not torch.equal(wanted, without)
    made = split(load_bundle(str(folder), computes=False), (CPU, CPU))
    apply_loras(made.transformer, loras)
    assert torch.equal(latents(made, tmp_path / "split"), wanted)
    two = split(load_bundle(str(folder), computes=False), (CPU, META))
    apply_loras(two.transformer, loras)
    for block, device in zip(two.transformer.stack, (CPU, META), strict=True):
        assert {tensor.device for tensor in block.parameters()} == {device}


# Led from device to device -------------------------------------------------------------------------------


def deep_wan() -> PackedWanTransformer3DModel:
    return shaken(
        PackedWanTransformer3DModel(**_config(wan()) | {"isolated_history": False, "num_layers": 7})
    )


def plain_hunyuan(**changes: Any) -> Any:
    kind = type(hunyuan())
    return shaken(kind(**_config(hunyuan()) | {"isolated_history": False} | changes))


def _config(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


MODELS: dict[str, Callable[[], Any]] = {
    "wan": deep_wan,
    "wan, isolated": lambda: wan(),
    "wan, causal": lambda: wan(causal_history=True),
    "wan, guided and scaled": lambda: wan(
        isolated_history=False, guided_cross_attention=True, history_scale="per_head"
    ),
    "hunyuan video": plain_hunyuan,
    "hunyuan video, plain blocks": lambda: plain_hunyuan(image_condition_type=None),
    "hunyuan video, isolated": lambda: hunyuan(),
    "hunyuan video, image": lambda: plain_hunyuan(has_image_proj=True, image_proj_dim=WIDTH),
}


class Transfers(TorchDispatchMode):
    """Counts tensors that go from one device to another, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and made.device != args[0].device:
            self.seen[tuple(made.shape)] += 1
        return made


@contextmanager
def pretended(model: Any, shares: list[range], *, led: bool = True, dtype: torch.dtype = torch.float32):
    """A model like this one without data, on two GPUs that are not there, and what makes its inputs."""
    with FakeTensorMode(), torch.no_grad():
        made = type(model)(**_config(model)).eval()
        owner = {
            id(part): CARDS[at]
            for at, share in enumerate(shares)
            for n in share
            for part in made.stack[n].modules()
        }
        for part in made.modules():
            for held in (part._parameters, part._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        empty = torch.empty_like(tensor, device=owner.get(id(part), CARDS[0]))
                        held[name] = torch.nn.Parameter(empty, False) if held is part._parameters else empty
        if led:
            lead(made.stack, shares, CARDS)
        yield made


def called(model: Any, memory: Memory | None = None, batch: int = 1) -> torch.Tensor:
    def empty(*sizes: int) -> torch.Tensor:
        return torch.empty(batch, *sizes, device=CARDS[0])

    zero = model.config.isolated_history or model.config.get("image_condition_type") is not None
    if model.config.get("causal_history") and memory is not None:
        # What is sorted by time has no order here: it is given, and must be brought along.
        order = torch.arange(HISTORY).to(CARDS[0])
        memory.made["times"] = TimeOrder(order, (6, HISTORY))
    levels = (
        ContextTensors(empty(CHANNELS, 2, *GRID), torch.tensor([0, 1]), KERNELS[1]),
        ContextTensors(empty(CHANNELS, 1, *GRID), torch.tensor([2]), KERNELS[0]),
    )
    context = PackedContext(levels, timestep=0.0 if zero else None, memory=memory)
    said = Conditioning(
        prompt=empty(5, WIDTH),
        pooled=empty(WIDTH),
        image=empty(3, WIDTH) if model.config.get("has_image_proj") else None,
        guidance=6.0,
    )
    times = torch.full((batch,), 500.0, device=CARDS[0])
    return model(empty(CHANNELS, 2, *GRID), times, said, torch.arange(2), context)


def halves(model: Any) -> list[range]:
    count = len(model.stack)
    return [range(count // 2), range(count // 2, count)]


@pytest.mark.parametrize("name", [*MODELS])
def test_all_tensors_are_where_they_are_computed_with(name):
    whole = MODELS[name]()
    with pretended(whole, halves(whole)) as model:
        memory = Memory()
        for _ in range(2):  # the second finds what the first has left
            found = called(model, memory)
            assert found.device == CARDS[0] and found.shape == (1, CHANNELS, 2, *GRID)
        devices = {pair[0].device for pair in memory.held.values()}
        assert devices == ({*CARDS} if model.config.isolated_history else set())
    with pretended(whole, halves(whole), led=False) as model, pytest.raises(RuntimeError, match="meta:1"):
        called(model, Memory())


@pytest.mark.parametrize(("name", "steered"), [("wan", 2), ("hunyuan video", 4)])
def test_what_many_blocks_are_given_is_brought_once(name, steered):
    """Tokens go there and back; prompt and modulation there once, however many blocks want them."""
    whole = MODELS[name]()
    for shares in (halves(whole), [range(1), range(1, len(whole.stack))]):
        with pretended(whole, shares) as model:
            memory = Memory()
            counts = []
            for _ in range(2):
                with Transfers() as transfers:
                    called(model, memory)
                counts.append(transfers.seen.total())
        # Phases are made on the CPU, and are there for all steps of a section.
        assert counts == [2 + steered + 4, 2 + steered]


@pytest.mark.parametrize("cache", ["first-block=10", "mag=0", "taylorseer=2"])
@pytest.mark.parametrize("name", ["wan", "hunyuan video"])
def test_step_caches_add_up_what_lies_on_one_device(name, cache, monkeypatch):
    whole, kind = MODELS[name](), StepCache.parse(cache)
    if kind.kind == "mag":
        kind = StepCache(kind=kind.kind, value=kind.value, ratios=(1.0,) * 6)
    # What is measured has no value here: everything is taken to be alike, and skipped.
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.0)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True, raising=False)
    with (
        pretended(whole, halves(whole)) as model,
        step_cache(model, kind, 6),
        model.cache_context("cond"),
    ):
        for _ in range(5):
            assert called(model, Memory()).device == CARDS[0]


# Asked for -----------------------------------------------------------------------------------------------


def test_the_command_splits_and_refuses_what_cannot_be(model, tmp_path):
    asked = ["generate", "--model", str(model), "--prompt", "a ball", "--frames", "9", "--device", "cpu"]
    asked += ["--steps", "1", "--untrained"]

    def call(*more: str) -> Any:
        return CliRunner().invoke(app, [*asked, *more])

    done = call("--memory", "split", "--devices", "2", "--out", str(tmp_path / "v.mp4"))
    assert done.exit_code == 0, done.exception
    # One device makes the very same run, and finds it finished.
    again = call("--out", str(tmp_path / "v.mp4"), "--json")
    assert again.exit_code == 0 and '"cached": true' in again.stdout
    told = call("--memory", "split", "--devices", "9", "--out", str(tmp_path / "w.mp4"))
    assert "2 layers cannot be split among 9 devices: use --devices 2" in str(told.exception)
    told = call("--memory", "layers", "--devices", "2", "--out", str(tmp_path / "w.mp4"))
    assert "memory policy 'layers' and 2 devices do not go together" in str(told.exception)


def test_gpus_are_those_that_are_seen(monkeypatch):
    policy = POLICIES["split"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda = torch.device("cuda")
    assert devices_for(policy, cuda, 2) == (torch.device("cuda", 0), torch.device("cuda", 1))
    assert len(devices_for(policy, cuda, 1)) == 4
    with pytest.raises(InputError, match="5 devices: this machine has 4 GPUs"):
        devices_for(policy, cuda, 5)
    with pytest.raises(
        InputError, match="device 'cuda:1' is one, 'split' is for several: give --device cuda"
    ):
        devices_for(policy, torch.device("cuda", 1), 2)
    with pytest.raises(InputError, match="'split' is for several GPUs, not for 'mps'"):
        devices_for(policy, torch.device("mps"), 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        InputError, match="'split' is for several GPUs, and here is one: choose layers or auto"
    ):
        devices_for(policy, cuda, 1)


# Estimated -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(folder) -> dict[int, Estimate]:
    """Of a tiny model on one and on two GPUs that are not here."""
    return {n: estimate(str(folder), seconds=1, memory=1000, system=1000, devices=n) for n in (1, 2)}


def test_each_gpu_is_told_what_it_needs(told, folder):
    one, two = ({choice.policy.name: choice for choice in each.choices} for each in told.values())
    stages = {stage.name: stage for stage in told[2].stages}
    architecture = find_architecture(str(folder))
    weights = weigh(architecture.hollow())
    assert not any(name.startswith("split") for name in one)
    assert {*two} == {"full", "full-tiled", "split", "split-tiled", "split-fp8", "split-fp8-tiled"}
    read = [e.weights.layers + e.activations for e in encoders(architecture, torch.device("cuda"))]
    work = [stages[name].activations for name in ("transformer", "encode", "decode")]
    assert two["split"].devices == (
        weights.total - weights.blocks[1] + max(work[0], *read),
        weights.blocks[1] + stages["decode"].weights + max(work),
    )
    assert two["split"].device == max(two["split"].devices)
    # With all weights each: as one, and beside it one that has no codec and no encoder.
    assert two["full"].devices == (one["full"].device, weights.total + work[0])
    assert two["full"].device == one["full"].device and two["full"].seconds < two["split"].seconds


def test_blocks_lie_where_the_estimate_has_them(model):
    weights = weigh(find_architecture(str(model)).hollow(dtype=torch.float32))
    made = split(load_bundle(str(model), computes=False), (CPU, META)).transformer
    there = sum(tensor.nbytes for tensor in made.parameters() if tensor.device == META)
    whole = sum(tensor.nbytes for tensor in (*made.parameters(), *made.buffers()))
    assert (there, whole) == (weights.blocks[1], weights.total)


def test_auto_splits_what_fits_one_only_rounded(told, folder, monkeypatch):
    from framepack.generation import placement

    asked = GenerateRequest(model=str(folder), prompt="a ball", seconds=1, memory="auto", untrained=True)
    source = resolve_model(str(folder))
    selection = select(asked, source.spec)
    sizes, fitting = {0: 24e9, 1: 16e9}, {}

    def found(model: str, *, devices: int, memory: float, **options: Any) -> Estimate:
        assert memory == (24 if devices == 1 else 16)  # the smallest
        choices = [replace(c, fits=c.policy.name in fitting[devices]) for c in told[devices].choices]
        return replace(told[devices], choices=tuple(choices))

    monkeypatch.setattr("framepack.resources.estimate.estimate", found)
    monkeypatch.setattr(placement, "device_memory", lambda device: sizes[device.index or 0])

    def chosen(alone: str, together: str, *, gpus: int = 2, **changes: Any) -> str:
        fitting.update({1: alone.split(), 2: together.split()})
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        return policy_for(replace(asked, **changes), source, selection, torch.device("cuda")).name

    assert chosen("fp8 nf4", "split split-tiled split-fp8") == "split"
    assert chosen("fp8 nf4", "split split-tiled", gpus=1) == "fp8"
    assert chosen("layers fp8", "split split-tiled") == "layers"
    assert chosen("fp8", "split-fp8") == "fp8" and chosen("", "split-fp8") == "split-fp8"
    assert chosen("full", "split", devices=2) == "split"
    assert chosen("full", "full split", devices=2) == "full"
    with pytest.raises(InputError, match=r"here are 1000\.0 GB and"):
        chosen("", "")
