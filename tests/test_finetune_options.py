"""Moments of 8 bits, and TensorBoard: what they hold, and that a run that was stopped goes on with them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from framepack.errors import InputError
from framepack.models.source import resolve_model
from framepack.recipes import finetune as recipes
from framepack.recipes.override import override
from framepack.training.finetune import finetune
from framepack.training.masters import Masters
from tiny_clips import save_clips, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 8


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Model folder and cache."""
    root = tmp_path_factory.mktemp("options")
    model = save_model("wan", root / "wan")
    return model, save_clips(model, root)


def train(places: tuple[Path, Path], out: Path, *settings: str) -> Path:
    model, cache = places
    small = ["dtype=float32", "device=cpu", "batch=2", "micro=2", "warmup=1", "samples.every=null"]
    small += [f"steps={STEPS}", "save_every=4", "log_every=1", "rate=0.01", "ema=0.5"]
    config = override(override(recipes.full(resolve_model(str(model)).spec), *small), *settings)
    finetune(config, out, str(model), cache)
    return out


def stopped(places: tuple[Path, Path], out: Path, *settings: str) -> Path:
    """After the row of step 6 and the state of step 4."""
    step, calls = Masters.step, []

    def interrupted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Masters, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(places, out, *settings)
    return out


def losses(out: Path) -> dict[int, float]:
    return {
        row["step"]: row["loss"] for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    }


def moments(out: Path) -> dict[str, torch.Tensor]:
    state = load_file(out / "state.safetensors")
    return {key: tensor for key, tensor in state.items() if key.startswith("optimiser/") and tensor.ndim}


# 8 bits ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight(places: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run with moments of 32 and of 8 bits."""
    pytest.importorskip("bitsandbytes")
    root = tmp_path_factory.mktemp("eight")
    return train(places, root / "32"), train(places, root / "8", "optimiser=adamw8bit")


def test_moments_of_8_bits_train_as_well(eight: tuple[Path, Path]) -> None:
    plain, small = (losses(out) for out in eight)
    assert small[1] == plain[1] and small[STEPS] < 0.8 * small[1]
    assert small[STEPS] == pytest.approx(plain[STEPS], rel=0.1) and small[STEPS] != plain[STEPS]


def test_moments_of_8_bits_take_a_quarter(eight: tuple[Path, Path]) -> None:
    plain, small = (moments(out) for out in eight)
    quantised = {key.rsplit("/", 1)[0] for key, tensor in small.items() if tensor.dtype == torch.uint8}
    weights = {key.rsplit("/", 1)[0]: tensor.numel() for key, tensor in plain.items()}
    assert quantised == {key for key, count in weights.items() if count >= 4096} and quantised

    def held(state: dict[str, torch.Tensor]) -> int:
        return sum(tensor.nbytes for key, tensor in state.items() if key.rsplit("/", 1)[0] in quantised)

    # Each value a byte, and each block of 256 one float: (1 + 4 / 256) / 4.
    assert held(small) / held(plain) == pytest.approx(0.254, abs=0.001)


def test_moments_of_8_bits_go_on(eight: tuple[Path, Path], places: tuple[Path, Path], tmp_path: Path) -> None:
    out = train(places, stopped(places, tmp_path, "optimiser=adamw8bit"), "optimiser=adamw8bit")
    for name in (
        "metrics.jsonl",
        "state.safetensors",
        "model/transformer/diffusion_pytorch_model.safetensors",
    ):
        assert (out / name).read_bytes() == (eight[1] / name).read_bytes(), name


def test_moments_of_8_bits_cannot_be_divided_anew(
    eight: tuple[Path, Path], places: tuple[Path, Path], tmp_path: Path
) -> None:
    """Their blocks go across rows."""
    out = tmp_path / "two"
    shutil.copytree(eight[1], out)
    for number in (1, 2):
        shutil.copy(out / "state.safetensors", out / f"state-000099-{number}-of-2.safetensors")
    with pytest.raises(
        InputError, match="saved by 2 processes, and moments of 8 bits cannot be divided anew"
    ):
        train(places, out, "optimiser=adamw8bit")


def test_without_bitsandbytes_one_line_says_what_to_install(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(InputError, match=r"pip install 'framepack-ai\[8bit\]', or use adamw$"):
        train(places, tmp_path, "optimiser=adamw8bit")
    with pytest.raises(InputError, match=r"unknown optimiser 'adam8bit': .* the nearest is adamw8bit"):
        train(places, tmp_path, "optimiser=adam8bit")
    assert not list(tmp_path.iterdir())


# TensorBoard -------------------------------------------------------------------------------------------


def test_tensorboard_has_the_rows_once(places: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def written(name: str) -> list[tuple[int, float]]:
        board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        return [(event.step, event.value) for event in board.Scalars(name)]

    stopped(places, tmp_path, "tensorboard=true")
    assert [step for step, _ in written("loss")] == [1, 2, 3, 4, 5, 6]
    train(places, tmp_path, "tensorboard=true")
    # Steps 5 and 6 of the run that was stopped have gone.
    assert written("loss") == list(losses(tmp_path).items()) and len(losses(tmp_path)) == STEPS
    assert [step for step, _ in written("norm")] == list(losses(tmp_path))


def test_without_tensorboard_one_line_says_what_to_install(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="TensorBoard is not installed: pip install tensorboard"):
        train(places, tmp_path, "tensorboard=true")
