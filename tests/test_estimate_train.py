"""Estimates of training, against steps that are carried out, and what people are told of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from framepack.cli import main
from framepack.conditioning.embeds import Conditioning
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import pack
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline
from framepack.recipes import finetune as recipes
from framepack.resources.hollow import Architecture, find_architecture
from framepack.resources.operations import operation_counter
from framepack.resources.section_cost import steering
from framepack.resources.sections import shape_of
from framepack.resources.tally import Tally, bytes_of, tensors_in
from framepack.training import step_cost
from framepack.training.finetune import make_trainable
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.flow_matching import Shown, flow_loss
from framepack.training.hollow import pretended
from framepack.training.masters import Masters
from framepack.training.optimisers import adamw_named
from framepack.training.step_cost import BACKWARD, UPDATE, StepCost
from framepack.training.steps import attention_in
from tiny import save_tiny, tiny_spec

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = (1, 2, 2)
KERNELS = (BASE, (2, 4, 4), (4, 8, 8))
GRID = (12, 16)
CPU = torch.device("cpu")
ONE_KIND = {"in_channels": 4, "out_channels": 4, "latent_channels": 4, "context_kernels": KERNELS}
SPEC = replace(
    tiny_spec(),
    base_kernel=BASE,
    methods={"vanilla": named_method("vanilla", BASE, 3)},
    default_method="vanilla",
    temporal_stride=4,
)
WAN = Architecture(
    spec=SPEC,
    arguments=ONE_KIND
    | {
        "patch_size": BASE,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 48,
        "num_layers": 4,
    },
    prompt_tokens=7,
)
HUNYUAN = Architecture(
    spec=replace(SPEC, family="hunyuan_video", embedded_guidance=10.0),
    arguments=ONE_KIND
    | {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 3,
        "num_single_layers": 3,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "pooled_projection_dim": 16,
        "rope_axes_dim": (4, 14, 14),
        "has_image_proj": True,
        "image_proj_dim": 16,
    },
    prompt_tokens=7,
)
CLASSES = {"wan": PackedWanTransformer3DModel, "hunyuan_video": PackedHunyuanVideoTransformer3DModel}


def config_of(architecture: Architecture, recipe: str, **changes) -> FineTuneConfig:
    return replace(getattr(recipes, recipe)(architecture.spec), **{"dtype": "float32"} | changes)


def cost_of(architecture: Architecture, config: FineTuneConfig, processes) -> StepCost:
    return StepCost(
        architecture,
        GRID,
        config,
        kernels=KERNELS,
        timestep=None,
        device=CPU,
        processes=processes,
    )


def last_section(frames: int = 25) -> Section:
    method = SPEC.method(None)
    return plan(Timeline(frames=frames, fps=8.0, stride=1, known=(0,)), method).sections[-1]


class Real:
    """A transformer with weights, trained as `training.finetune` does it."""

    def __init__(self, architecture: Architecture, config: FineTuneConfig) -> None:
        torch.manual_seed(0)
        self.architecture, self.config = architecture, config
        self.model = CLASSES[architecture.spec.family](**architecture.arguments).requires_grad_(False)
        make_trainable(self.model, architecture.spec, config)
        self.masters = Masters(
            {"model": self.model},
            rate=config.rate,
            weight_decay=config.weight_decay,
            ema=config.ema,
            muon=False,
            adamw=adamw_named(config.optimiser),
        )

    def step(self, section: Section, batch: int) -> int:
        """Its operations."""

        def random(*sizes: int) -> torch.Tensor:
            return torch.randn(batch, *sizes)

        target = random(4, len(section.frames), *GRID)
        context = pack(
            section, lambda frames: random(4, len(frames), *GRID), target, aligned=False, timestep=None
        )
        steered: Conditioning = steering(self.architecture, self.model.config, random)
        shown = Shown(target, steered, torch.tensor(section.positions), context)
        with operation_counter() as counter, attention_in(self.config, CPU):
            loss = flow_loss(
                np.random.default_rng(0), shown, self.model, self.config.objective, BASE, torch.float32
            )
            loss.backward()
        del shown, target, context, steered, loss
        self.masters.step(1.0, self.config.clip)
        return counter.get_total_flops()

    def held(self) -> list[torch.Tensor]:
        return tensors_in(self.model, vars(self.masters))


CASES = {
    "hunyuan, full": (HUNYUAN, "full", {}),
    "wan, full, kept, no average": (WAN, "full", {"checkpointing": False, "ema": None}),
    "wan, LoRA": (WAN, "lora", {}),
    "wan, LoRA, kept": (WAN, "lora", {"checkpointing": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_peaks_and_operations_are_those_of_a_real_step(case):
    architecture, recipe, changes = CASES[case]
    config, section = config_of(architecture, recipe, **changes), last_section()
    real, shape = Real(architecture, config), shape_of(section)
    real.step(section, 1)
    with pretended(1) as alone:
        cost = cost_of(architecture, config, alone)
    assert cost.parameters == sum(p.numel() for p in real.model.parameters())
    assert cost.trained == sum(p.numel() for p in real.masters.live.values())
    for batch in (1, 4):
        with Tally(real.held()) as tally:
            between = tally.live
            operations = real.step(section, batch)
        found = cost.count(shape, batch)
        print(f"{case}, batch {batch}: {found.most / tally.peak - 1:+.1%} of a real step, in {found.dearest}")
        assert found.most == pytest.approx(tally.peak, rel=0.02)
        assert found.operations == operations
        assert sum(found.held.values()) - found.held["gradients"] == pytest.approx(between, rel=0.01)


# Blocks and devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["full", "lora"])
def test_blocks_that_are_not_counted_add_what_they_would(recipe, monkeypatch):
    """Of a few blocks of each stack follows what all of them take, in every part of a step."""
    deep = replace(HUNYUAN, arguments=HUNYUAN.arguments | {"num_single_layers": 5})
    config, shape = config_of(deep, recipe, dtype="bfloat16"), shape_of(last_section())
    with pretended(4) as team:
        few = cost_of(deep, config, team)
        assert len(few._parts) == 3
        monkeypatch.setattr(step_cost, "min", lambda count, least: count, raising=False)
        whole = cost_of(deep, config, team)
        assert len(whole._parts) == 1
        one, other = few.count(shape, 2), whole.count(shape, 2)
    assert one.peaks == pytest.approx(other.peaks, rel=0.01) and one.operations == other.operations
    assert one.held == pytest.approx(other.held, rel=0.001)


def test_devices_share_what_lies_between_steps_and_gather_a_block():
    """float32 weights that are the masters, their average, two moments and gradients: 20 bytes over all."""
    section, architecture = last_section(), find_architecture("wan-1.3b")
    config = recipes.full(architecture.spec)
    found = {}
    for devices in (1, 8):
        with pretended(devices) as team:
            cost = StepCost(
                architecture, GRID, config, kernels=KERNELS, timestep=None, device=CPU, processes=team
            )
            found[devices] = cost.count(shape_of(section), 1)
    one, many = (found[n].held for n in (1, 8))
    assert sum(many.values()) == pytest.approx(20 * cost.parameters / 8, rel=0.01)
    assert sum(one.values()) == pytest.approx(20 * cost.parameters, rel=0.01) and one["masters"] > 0
    assert many["masters"] < 0.01 * many["weights"]  # the shards are both
    assert many["moments"] == pytest.approx(one["moments"] / 8, rel=0.01)
    # Gradients of all weights that one device flattens, and two blocks that eight gather, are beside it.
    assert found[1].peaks[UPDATE] > sum(one.values()) + 4 * cost.parameters
    block = 4 * (cost.parameters / 30)
    assert block < found[8].peaks[BACKWARD] - sum(many.values()) < 12 * block
    assert found[1].operations == found[8].operations


def test_the_largest_batch_is_the_largest():
    shape = shape_of(last_section())
    with pretended(1) as alone:
        cost = cost_of(WAN, config_of(WAN, "full"), alone)
    for room in (cost.count(shape, 1).most - 1, *(cost.count(shape, n).most for n in (1, 9))):
        largest = cost.largest(shape, room)
        assert cost.count(shape, largest + 1).most > room
        assert largest == 0 or cost.count(shape, largest).most <= room


def test_moments_of_8_bits_are_as_bitsandbytes_makes_them():
    pytest.importorskip("bitsandbytes")
    wide = replace(WAN, arguments=WAN.arguments | {"num_layers": 2, "ffn_dim": 512, "freq_dim": 256})
    config, section = config_of(wide, "full", optimiser="adamw8bit"), last_section()
    real = Real(wide, config)
    real.step(section, 1)
    with pretended(1) as alone:
        found = cost_of(wide, config, alone).count(shape_of(section), 1)
    assert found.held["moments"] == pytest.approx(bytes_of(tensors_in(real.masters.optimisers)), rel=0.01)
    assert found.held["moments"] < 0.6 * 2 * found.held["masters"]


# The command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["framepack", "estimate", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "180")
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return call


def test_the_command_tells_the_largest_batch_by_section_and_history(run, tiny):
    words = ("--model", tiny, "--train", "full", "--devices", 2, "--memory", 0.52)
    code, out, _ = run(*words, "--section", 3, "--flops-per-second", 1e9)
    assert code == 0
    for text in ("all weights", "2 x cuda", "moments", "codec", "packed", "full history", "of 2", "1e+09"):
        assert text in out, text
    code, out, _ = run(*words, "--section", 3, "--seconds", 20, "--json")
    found = json.loads(out)
    packed, full = found["rows"]
    assert code == 0 and (packed["history"], full["history"]) == ("packed", "full history")
    assert packed["batch"] > full["batch"] > 0 and packed["fits"] and packed["seconds"] is None
    assert max(packed["most"], full["most"]) <= 0.02e9
    assert packed["a_sample"] < full["a_sample"] and packed["operations"] < full["operations"]
    code, out, _ = run(*words, "--section", 3, "--batch", 10_000, "--json")
    assert code == 0 and not any(row["fits"] for row in json.loads(out)["rows"])


def test_settings_are_those_of_training(run, tiny):
    words = ("--model", tiny, "--train", "lora", "--section", 3, "--batch", 2, "--device", "cpu", "--json")
    trained = []
    for rank in (2, 4):
        code, out, _ = run(*words, "--set", f"lora.rank={rank}", "--set", "lora.kernels=false")
        assert code == 0
        trained.append(json.loads(out)["trained"])
    assert trained[1] == 2 * trained[0]
    found = [json.loads(run(*words, "--set", f"checkpointing={flag}")[1]) for flag in ("true", "false")]
    plain, kept = (row["operations"] for row in (found[0]["rows"][0], found[1]["rows"][0]))
    assert plain > 1.1 * kept and found[0]["device"] == "cpu"


def test_bad_input_is_told_in_one_line(run, tiny):
    train = ("--train", "full")
    for arguments, told in {
        ("--train", "ful"): "unknown recipe 'ful'",
        (*train, "--devices", "0"): "--devices 0: give 1 or more",
        (*train, "--batch", "0"): "--batch 0: give 1 or more",
        (*train, "--section", "0"): "--section 0: give 1 or more",
        (*train, "--memory", "0"): "--memory 0 must be a number above 0",
        (*train, "--set", "nothing=1"): "nothing",
        (*train, "--steps", "3"): "--steps is for videos",
        (*train, "--dtype", "fp8"): "dtype",
        ("--batch", "3"): "--batch is for training: add --train",
        (
            *train,
            "--seconds",
            "0.6",
        ): "and its start frame have more: raise --seconds",
    }.items():
        code, out, err = run("--model", tiny, *arguments)
        lines = [line for line in err.splitlines() if line.startswith("error")]
        assert code == 2 and not out and len(lines) == 1 and told in lines[0], (arguments, out, err)


def test_nothing_is_left_of_pretended_devices():
    with pretended(4) as team:
        assert torch.distributed.get_world_size() == team.count == 4
    assert not torch.distributed.is_initialized()
