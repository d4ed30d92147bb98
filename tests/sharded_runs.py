"""The fine-tuning runs of test_sharded.py: what one process does, and what each of torchrun's two does.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/sharded_runs.py ROOT
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from framepack.errors import InputError, OutputError
from framepack.models.source import resolve_model
from framepack.recipes import finetune as recipes
from framepack.recipes.override import override
from framepack.training import finetune as module
from framepack.training import sharded
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.masters import Masters

STEPS, HALF = 20, 10
RUNS: dict[str, tuple[str, str, Sequence[str]]] = {
    # Draws without history or image leave kernels and image tokens unused on one process alone.
    "full": ("hunyuan_video", "full", ("batch=4", "objective.drop_history=0.4", "objective.drop_image=0.5")),
    "lora": (
        "wan",
        "lora",
        (
            "checkpointing=false",
            "objective.rollout.share=0.3",
            "objective.rollout.steps=1",
            "samples.every=10",
            "samples.count=1",
            "samples.sections=1",
        ),
    ),
}
"""Family, recipe and settings by name."""
ROUNDED = ("full", "lora")
"""Those of which a few steps are run in bfloat16 too."""
BFLOAT16, FEW = ("dtype=bfloat16", "objective.rollout.share=0", "samples.every=null"), 3
COMMON = ("dtype=float32", "device=cpu", f"steps={STEPS}", "micro=1", "warmup=1", "rate=0.01", "ema=0.5")


def settings_of(name: str) -> list[str]:
    _, recipe, own = RUNS[name]
    small = ["lora.rank=3", "lora.alpha=6"] if recipe == "lora" else []
    return [*COMMON, "batch=2", "samples.every=null", f"save_every={HALF}", "log_every=1", *small, *own]


def places(root: Path, name: str) -> tuple[Path, Path]:
    """Model and cache."""
    family = RUNS[name][0]
    return root / family, root / f"{family}-clips" / "cache"


def config_of(root: Path, name: str, *settings: str) -> FineTuneConfig:
    spec = resolve_model(str(places(root, name)[0])).spec
    # The last of two values for one field counts.
    return override(override(getattr(recipes, RUNS[name][1])(spec), *settings_of(name)), *settings)


def train(root: Path, name: str, out: Path, *settings: str, steps: int = STEPS) -> None:
    model, cache = places(root, name)
    module.finetune(replace(config_of(root, name, *settings), steps=steps), out, str(model), cache)


def both(root: Path) -> None:
    """Runs that two processes share; the last is killed."""
    first = dist.get_rank() == 0
    _tell_parts(root)
    train(root, "full", root / "full-2", steps=HALF)
    if first:
        shutil.copytree(root / "full-2", root / "full-2-half")
    dist.barrier()
    train(root, "full", root / "full-2")
    train(root, "lora", root / "lora-1-half")  # begun by one process
    _command(root)
    for name in ROUNDED:
        train(root, name, root / f"bfloat16-{name}-2", *BFLOAT16, steps=FEW)

    saved, save_file = [], sharded.save_file

    def failing(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        saved.append(1)
        if len(saved) < 2 or first:
            save_file(tensors, file, metadata=metadata)
            return
        file.write_bytes(b"half")
        if "killed" in file.parent.name:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, "No space left on device")

    sharded.save_file = failing
    refused = {}
    for name, error, settings in (
        ("disk", OutputError, ()),
        ("shared", InputError, ("batch=3",)),
        ("killed", RuntimeError, ()),
    ):
        saved.clear()
        if first:
            (root / "refused.json").write_text(json.dumps(refused))
        try:
            train(root, "lora", root / name, "save_every=2", *settings, steps=4)
        except error as caught:
            refused[name] = f"{type(caught).__name__}: {caught}"


def _tell_parts(root: Path) -> None:
    """Have every run write what its parameters are: of a DTensor its placement, rows here and rows in all."""
    take_steps = module.take_steps

    def told(config: Any, out: Path, bundle: Any, *rest: Any) -> None:
        parts = {
            name: [str(p.placements), len(p.to_local()), len(p), str(p.dtype), p.requires_grad]
            if isinstance(p, DTensor)
            else None
            for name, p in bundle.transformer.named_parameters()
        }
        (root / f"parts-{out.name}-{dist.get_rank()}.json").write_text(json.dumps(parts))
        masters: Masters = rest[2]
        assert all(
            masters.live[name].to_local().data_ptr() == master.data_ptr()  # type: ignore[attr-defined]
            for name, master in masters.master.items()
        )
        take_steps(config, out, bundle, *rest)

    module.take_steps = told


def _command(root: Path) -> None:
    """The LoRA run, by the command."""
    model, cache = places(root, "lora")
    command = ["framepack", "train", "--recipe", "lora", "--model", str(model), "--data", str(cache)]
    sets = [word for setting in settings_of("lora") for word in ("--set", setting)]
    sys.argv = [*command, "--out", str(root / "lora-2"), *sets]
    try:
        runpy.run_module("framepack", run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    both(Path(sys.argv[1]))
