"""Fine-tuning that two processes share: the same losses, real shards, states that any number goes on from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from framepack.errors import InputError
from framepack.training.masters import Masters
from framepack.training.processes import Processes
from framepack.training.state import keep_only, shard_file, state_files
from sharded_runs import BFLOAT16, FEW, HALF, ROUNDED, RUNS, STEPS, train
from tiny_clips import save_clips, save_model

TOLERANCE = 1e-5
"""Of losses, relative, in float32: sums over two processes round otherwise, and 20 steps carry it on."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of this file, by folder: NAME-1 of one process, NAME-2 of two."""
    root = tmp_path_factory.mktemp("sharded")
    for family in ("hunyuan_video", "wan"):
        save_clips(save_model(family, root / family), root / f"{family}-clips")
    train(root, "full", root / "full-1")
    train(root, "lora", root / "lora-1", steps=HALF)
    shutil.copytree(root / "lora-1", root / "lora-1-half")
    train(root, "lora", root / "lora-1")
    for name in ROUNDED:
        train(root, name, root / f"bfloat16-{name}-1", *BFLOAT16, steps=FEW)
    script = Path(__file__).with_name("sharded_runs.py")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", *torchrun], env=environment, capture_output=True, text=True, timeout=600
    )
    # It ends with the run that is killed.
    assert re.search(r"exitcode\s*: -9 \(pid", ended.stderr), ended.stderr[-6000:]
    (root / "stdout").write_text(ended.stdout)
    return root


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def largest_difference(one: Path, two: Path) -> float:
    first, second = losses(one), losses(two)
    assert len(first) == len(second) == STEPS
    return max(abs(b - a) / a for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one(name: str, root: Path) -> None:
    assert largest_difference(root / f"{name}-1", root / f"{name}-2") < TOLERANCE
    assert losses(root / f"{name}-1")[-1] < 0.9 * losses(root / f"{name}-1")[0]


@pytest.mark.parametrize("name", ROUNDED)
def test_in_bfloat16_they_differ_by_its_rounding(name: str, root: Path) -> None:
    """One process sums gradients in bfloat16 and has kernels of a LoRA in it; two sum and keep in float32."""
    one, two = (losses(root / f"bfloat16-{name}-{count}") for count in (1, 2))
    assert len(one) == len(two) == FEW
    assert two == pytest.approx(one, rel=0.02) and two[0] == pytest.approx(one[0], rel=0.003)
    parts = json.loads((root / f"parts-bfloat16-{name}-2-0.json").read_text()).values()
    assert {(dtype, trained) for *_, dtype, trained in parts} == {
        ("torch.float32", True),
        *([("torch.bfloat16", False), ("torch.float32", False)] if name == "lora" else []),
    }


@pytest.mark.parametrize("name", RUNS)
def test_what_comes_out_is_the_same(name: str, root: Path) -> None:
    file = "lora.safetensors" if name == "lora" else "model/transformer/diffusion_pytorch_model.safetensors"
    one, two = (load_file(root / f"{name}-{count}" / file) for count in (1, 2))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-3, msg=key)
    if name == "full":
        read = [(root / f"full-{n}/model/transformer/config.json").read_text() for n in (1, 2)]
        assert read[0] == read[1]


@pytest.mark.parametrize("name", RUNS)
def test_parameters_are_in_shards(name: str, root: Path) -> None:
    told = [json.loads((root / f"parts-{name}-2-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(told[0]) > 30 and told[0].keys() == told[1].keys()
    for key, part in told[0].items():
        assert part is not None, f"{key} is no DTensor"
        placement, rows, whole, dtype, trained = part
        assert placement == "(Shard(dim=0),)" and rows + told[1][key][1] == whole, key
        assert rows == -(-whole // 2) and dtype == "torch.float32", key
        assert trained or name == "lora"


def test_one_process_goes_on_from_a_state_of_two(root: Path) -> None:
    out = root / "full-2-half"
    assert [path.name for path in state_files(out / "state.safetensors")] == [
        f"state-000010-{number}-of-2.safetensors" for number in (1, 2)
    ]
    train(root, "full", out)
    assert largest_difference(root / "full-1", out) < TOLERANCE
    # Its own state takes the place of theirs.
    assert [path.name for path in sorted(out.glob("state*"))] == ["state.safetensors"]


def test_two_processes_go_on_from_a_state_of_one(root: Path) -> None:
    out = root / "lora-1-half"
    assert largest_difference(root / "lora-1", out) < TOLERANCE
    assert [path.name for path in sorted(out.glob("state*"))] == [
        f"state-000020-{number}-of-2.safetensors" for number in (1, 2)
    ]


def test_states_are_plain_tensors_and_nothing_twice(root: Path) -> None:
    assert not [
        path for path in (root / "full-2").rglob("*") if path.suffix in (".pt", ".distcp", ".metadata")
    ]
    rows: dict[str, int] = {}
    with safe_open(root / "full-1" / "state.safetensors", "pt") as held:
        whole = {key: held.get_slice(key).get_shape() for key in held.keys()}  # noqa: SIM118
    for file in state_files(root / "full-2" / "state.safetensors"):
        with safe_open(file, "pt") as held:
            assert set(held.keys()) == set(whole)
            for key, shape in whole.items():
                rows[key] = rows.get(key, 0) + (held.get_slice(key).get_shape()[0] if shape else 0)
    assert rows == {key: shape[0] if shape else 0 for key, shape in whole.items()}


def test_one_process_writes_and_speaks(root: Path) -> None:
    assert (root / "stdout").read_text().splitlines() == [str(root / "lora-2" / "lora.safetensors")]
    names = sorted(path.name for path in (root / "lora-2" / "samples").iterdir())
    assert names == ["clip-0.mp4", "step-000010-clip-0.mp4", "step-000020-clip-0.mp4"]


def test_a_full_disk_of_one_process_leaves_the_state_before(root: Path) -> None:
    refused = json.loads((root / "refused.json").read_text())
    assert refused["disk"].startswith("OutputError: another process cannot write its part")
    names = [path.name for path in sorted((root / "disk").glob("*state*"))]
    assert names == [f"state-000002-{number}-of-2.safetensors" for number in (1, 2)]


def test_killed_while_saving_goes_on_from_the_state_before(root: Path) -> None:
    """Process 1 died inside its file, process 0 had finished its own."""
    out, whole = root / "killed", "state-000002-{}-of-2.safetensors"
    names = {path.name for path in out.glob("state*")}
    assert names == {whole.format(1), whole.format(2), "state-000004-1-of-2.safetensors"}
    assert [path.name for path in state_files(out / "state.safetensors")] == [
        whole.format(1),
        whole.format(2),
    ]
    train(root, "lora", out, "save_every=2", steps=4)
    assert losses(out) == pytest.approx(losses(root / "lora-1")[:4], rel=TOLERANCE)
    assert [path.name for path in sorted(out.glob("*state*"))] == ["state.safetensors"]


def test_draws_that_cannot_be_shared_evenly(root: Path) -> None:
    told = "InputError: 3 draws a step cannot be shared evenly by 2 processes: make batch a multiple of 2"
    assert json.loads((root / "refused.json").read_text())["shared"] == told
    assert Processes(device=torch.device("cpu"), count=8).share(64 // 8, 8) == 1
    with pytest.raises(InputError, match="by 3 processes: make batch a multiple of 24"):
        Processes(device=torch.device("cpu"), count=3).share(64 // 8, 8)


def test_only_whole_sets_of_files_are_states(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    assert state_files(path) == ()
    files = {
        (step, count): [shard_file(path, step, rank, count) for rank in range(count)]
        for step, count in ((7, 2), (9, 3), (1_000_000, 2))
    }
    for file in (*files[7, 2], *files[9, 3][:2], files[1_000_000, 2][1]):
        file.touch()
    assert state_files(path) == tuple(files[7, 2])
    weights = torch.nn.ModuleDict({"layer": torch.nn.Linear(3, 5)})
    masters = Masters({"m": weights}, rate=0.1, weight_decay=0.0, ema=None, muon=False)
    masters.updates = 8
    masters.save(tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").rename(path)
    assert state_files(path) == (path,)
    files[9, 3][2].touch()
    assert state_files(path) == tuple(files[9, 3])
    (tmp_path / ".state-000008-1-of-2.safetensors.part").touch()
    keep_only(path, files[9, 3])
    assert sorted(tmp_path.iterdir()) == sorted(files[9, 3])
