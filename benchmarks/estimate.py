"""What ``framepack estimate`` foretells beside what a process really takes.

Five configurations, each in a process of its own on the CPU: a video of the bundled model, a longer one by
another method, a section of a HunyuanVideo of random weights, and a step of training, of all weights and of a
LoRA. Measured is how much the process's resident memory grows from after the imports to its highest.

  python benchmarks/estimate.py
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from framepack.errors import UnknownNameError
from framepack.resources.machine import machine
from shared.report import Report, Table, carry_out

Sizes = tuple[int, int, int]
MB = 1e6
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PLAIN_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Freed tensors go back to the system: glibc's own thresholds scatter them, which is no tensor's size."""
SMALL, LARGE = (4, 2, 4), (6, 3, 6)
"""Heads of 128, double and single blocks of a HunyuanVideo: 0.04 and 0.13 billion parameters."""
GRID = (32, 32)


class Growth:
    """Bytes by which this process grew, at most, from here on."""

    def __init__(self) -> None:
        REFERENCES.write_text("5")  # the highest value begins anew
        self._begun = _status("VmRSS")

    def most(self) -> int:
        return _status("VmHWM") - self._begun


def _status(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def video(**settings: Any) -> tuple[int, int]:
    """A video of the bundled model, decoded while it grows: measured and estimated bytes."""
    import torch

    from framepack.generation.pipeline import FramePackPipeline
    from framepack.resources.estimate import estimate

    def make(settings: dict[str, Any]) -> None:
        pipe = FramePackPipeline.from_pretrained("bundled", torch_dtype=torch.float32, device="cpu")
        image = _picture(settings["height"], settings["width"])
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "video.mp4"
            for _ in pipe.stream("a red ball moves right", image, out=out, untrained=True, **settings):
                pass

    _imports()
    make(settings | {"height": 64, "width": 64, "seconds": 1.0})  # libraries that come late
    gc.collect()
    growth = Growth()
    make(settings)
    measured = growth.most()
    found = estimate(
        "bundled",
        size=(settings["height"], settings["width"]),
        seconds=settings["seconds"],
        method=settings.get("method"),
        steps=settings["num_inference_steps"],
        guidance=settings["guidance_scale"],
        device="cpu",
        dtype="float32",
    )
    (choice,) = (choice for choice in found.choices if choice.policy.name == "full")
    return measured, choice.device


def section(sizes: Sizes) -> tuple[int, int]:
    """A denoised section of a HunyuanVideo of random weights."""
    import torch

    from framepack.resources.section_cost import SectionCost, packed_context, steering
    from framepack.sampling.section import sample_section
    from framepack.sampling.solvers import euler

    _imports()
    architecture, shape = _hunyuan(sizes)
    spec, kernels = architecture.spec, architecture.spec.method(None).schedule.kernels

    def noise(*sizes: int) -> torch.Tensor:
        return torch.randn(1, *sizes)

    growth = Growth()
    model = _weights(architecture, kernels)
    steered = steering(architecture, model.config, noise)
    sample_section(
        model,
        noise=noise(spec.latent_channels, shape.target, *GRID),
        positions=torch.arange(shape.target),
        context=packed_context(shape, spec.latent_channels, GRID, noise, aligned=False, timestep=None),
        prompt=steered,
        negative=steered,
        guidance=1.0,
        sigmas=torch.linspace(1, 0, 3),
        solver=euler,
    )
    measured = growth.most()
    cost = SectionCost(
        architecture,
        GRID,
        section=shape.target,
        kernels=kernels,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return measured, cost.count(shape).peak


def training(sizes: Sizes, recipe: str, batch: int, **changes: Any) -> tuple[int, int]:
    """Two optimisation steps of a HunyuanVideo, by the training code's own loss and masters."""
    import numpy as np
    import torch

    from framepack.recipes import finetune as recipes
    from framepack.resources.section_cost import packed_context, steering
    from framepack.training.finetune import make_trainable
    from framepack.training.flow_matching import Shown, flow_loss
    from framepack.training.hollow import pretended
    from framepack.training.masters import Masters
    from framepack.training.step_cost import StepCost
    from framepack.training.steps import attention_in

    _imports()
    architecture, shape = _hunyuan(sizes)
    spec, kernels = architecture.spec, architecture.spec.method(None).schedule.kernels
    config, cpu = replace(getattr(recipes, recipe)(spec), dtype="float32", **changes), torch.device("cpu")

    def noise(*sizes: int) -> torch.Tensor:
        return torch.randn(batch, *sizes)

    growth = Growth()
    model = _weights(architecture, kernels)
    make_trainable(model, spec, config)
    masters = Masters(
        {"model": model}, rate=config.rate, weight_decay=config.weight_decay, ema=config.ema, muon=False
    )
    for _ in range(2):
        shown = Shown(
            noise(spec.latent_channels, shape.target, *GRID),
            steering(architecture, model.config, noise),
            torch.arange(shape.target),
            packed_context(shape, spec.latent_channels, GRID, noise, aligned=False, timestep=None),
        )
        with attention_in(config, cpu):
            loss = flow_loss(
                np.random.default_rng(0), shown, model, config.objective, spec.base_kernel, torch.float32
            )
        loss.backward()
        del shown, loss
        masters.step(1.0, config.clip)
    measured = growth.most()
    with pretended(1) as alone:
        cost = StepCost(
            architecture, GRID, config, kernels=kernels, timestep=None, device=cpu, processes=alone
        )
    return measured, cost.count(shape, batch).most


CASES: dict[str, Callable[[], tuple[int, int]]] = {
    "bundled, 4 s of 384 x 384, guided": lambda: video(
        seconds=4.0, height=384, width=384, num_inference_steps=1, guidance_scale=2.0
    ),
    "bundled, 30 s of 256 x 256, vanilla": lambda: video(
        seconds=30.0, height=256, width=256, num_inference_steps=1, guidance_scale=1.0, method="vanilla"
    ),
    "HunyuanVideo of 0.13 B, a section": lambda: section(LARGE),
    "HunyuanVideo of 0.04 B, training all of it": lambda: training(SMALL, "full", 1),
    "HunyuanVideo of 0.13 B, training a LoRA": lambda: training(LARGE, "lora", 2),
}


def _imports() -> None:
    """What loads libraries late is loaded, and PyTorch's threads are there, before memory is looked at."""
    import diffusers.models.transformers.transformer_hunyuan_video  # noqa: F401
    import peft  # noqa: F401
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    torch.optim.AdamW(layer.parameters()).step()
    layer(torch.randn(2, 8)).sum().backward()


def _picture(height: int, width: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def _hunyuan(sizes: Sizes) -> tuple[Any, Any]:
    """The architecture, and the shape of its last section of 5 s."""
    from framepack.resources.hollow import find_architecture
    from framepack.resources.sections import packed_sections, timeline_of

    base = find_architecture("base")
    fields = dict(zip(("num_attention_heads", "num_layers", "num_single_layers"), sizes, strict=True))
    small = {"text_embed_dim": 512, "num_refiner_layers": 1}
    method = base.spec.method(None)
    sections = packed_sections(timeline_of(base.spec, method, 5.0, base.spec.fps), method, GRID)
    return replace(base, arguments=base.arguments | fields | small), sections.shapes[sections.dearest]


def _weights(architecture: Any, kernels: Any) -> Any:
    from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel

    arguments = architecture.arguments | {"context_kernels": (architecture.spec.base_kernel, *kernels)}
    return PackedHunyuanVideoTransformer3DModel(**arguments).requires_grad_(False)


def benchmark(options: argparse.Namespace, command: str, console: Any) -> Report:
    wanted = list(CASES)[: options.first] if options.only is None else [options.only]
    if options.only is not None and options.only not in CASES:
        raise UnknownNameError("case", options.only, list(CASES))
    where, found = machine(), {}
    for name in wanted:
        one = [sys.executable, __file__, "--case", name]
        ended = subprocess.run(one, env=os.environ | PLAIN_MALLOC, check=True, capture_output=True, text=True)
        measured, estimated = json.loads(ended.stdout.splitlines()[-1])
        found[name] = {"measured": measured, "estimated": estimated, "ratio": estimated / measured}
        console.print(f"{name}: {found[name]['ratio']:.3f}", style="dim")
    rows = [
        (name, f"{row['measured'] / MB:,.0f}", f"{row['estimated'] / MB:,.0f}", f"{row['ratio'] - 1:+.1%}")
        for name, row in found.items()
    ]
    furthest = max(abs(row["ratio"] - 1) for row in found.values())
    return Report(
        name="Estimates",
        command=command,
        machine=where,
        tables=(
            Table(
                title="Most memory, MB",
                columns=("configuration", "measured", "estimated", "difference"),
                rows=tuple(rows),
                notes=("measured: growth of resident memory after the imports; one thread",),
            ),
        ),
        findings=(f"{len(found)} configurations: at most {furthest:.1%} apart",),
        data={"cases": found},
    )


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["--case"]:  # a process of its own
        print(json.dumps(CASES[given[1]]()))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", help="one configuration, by its name")
    parser.add_argument("--first", type=int, default=len(CASES), help="how many of them")
    return carry_out("estimate", parser, given, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
