"""What ``framepack estimate`` says of memory, beside what the same command then takes.

Every command is carried out in a process of its own, after a small one of the same kind: what the process
holds by then is Python and libraries, which no estimate counts. The peak of resident memory above it is what
the command took. That is told twice: where freed memory goes back to the system, and as it comes, for glibc
has tensors below 32 MiB in a heap, where gaps remain. Weights are random and text encoders small, neither of
which matters to the comparison. Wan 2.1 1.3B and both codecs have their released sizes, HunyuanVideo its
released widths and fewer blocks.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan, WanTransformer3DModel
from rich.console import Console

from framepack.cli import main as framepack
from framepack.errors import InputError
from framepack.generation.clock import resident_memory
from framepack.resources.hollow import WAN_SIZES, made_in
from framepack.resources.machine import GB, machine
from framepack.training.estimate import PACKED
from framepack.video.io import write_video
from shared.peer_weights import save_wan
from shared.report import Report, Table, carry_out
from tiny_framepack import framepack_transformer
from tiny_parts import WIDTH, save_hunyuan_video

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWN = ("--image", str(EXAMPLES / "demo.png"), "--prompt", "A red ball rolls.")
STEPS = ("--set", "steps=2", "--set", "batch=1", "--set", "samples.every=null")
"""Of training: the second step finds all that stays between them."""
M_MMAP_THRESHOLD, MIB = -3, 2**20
"""Of glibc's mallopt."""
CLIP = 3
"""Seconds of the clips that are trained on."""
SECTION = 9
"""Latent frames of a section of the models made here."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command.

    Attributes:
        model: of `MODELS`. side: px, high and wide.
        options: of ``generate`` and ``estimate`` both, or --set of ``train`` and ``estimate --train``.
        memory: policy. recipe: of fine-tuning; None makes a video.
    """

    name: str
    model: str
    side: int
    options: tuple[str, ...] = ()
    memory: str = "full"
    recipe: str | None = None

    def estimate(self, model: str) -> list[str]:
        line = ["estimate", "--model", model, "--size", f"{self.side}x{self.side}", "--device", "cpu"]
        if self.recipe is not None:
            line += ["--train", self.recipe, "--seconds", str(CLIP)]
            line += ["--section", str(SECTION), "--batch", "1"]
        return [*line, *self.options, "--json"]

    def command(self, model: str, data: Path, out: Path) -> list[str]:
        if self.recipe is not None:
            line = ["train", "--recipe", self.recipe, "--data", str(data), "--out", str(out / "run"), *STEPS]
        else:
            line = ["generate", "--size", f"{self.side}x{self.side}", "--memory", self.memory, *SHOWN]
            line.append("--untrained")  # for the size
            line += ["--out", str(out / "video.mp4")]
        return [*line, "--model", model, "--device", "cpu", *self.options]

    def small(self, data: Path, out: Path) -> list[str]:
        """A command of the same kind, which has the process load what the other one needs."""
        if self.recipe is not None:
            line = ["train", "--recipe", "lora", "--data", str(data), "--out", str(out / "small"), *STEPS]
        else:
            line = ["generate", "--seconds", "1", "--steps", "1", "--memory", self.memory, *SHOWN]
            line += ["--out", str(out / "small.mp4")]
        return [*line, "--model", "bundled"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Bytes before the command, and above that: the most it took, the same with gaps, and as estimated.

    seconds: that it took, both times.
    """

    before: int
    measured: int
    with_gaps: int
    estimated: int
    seconds: tuple[float, float]

    @property
    def ratio(self) -> float:
        return self.estimated / self.measured


def wan_1_3b(folder: Path) -> None:
    """Wan 2.1 1.3B."""
    save_wan(folder)
    AutoencoderKLWan().save_pretrained(folder / "vae")
    with made_in(torch.bfloat16):
        transformer = WanTransformer3DModel(**WAN_SIZES["wan-1.3b"][1], text_dim=WIDTH)
    transformer.save_pretrained(folder / "transformer")


def hunyuan_video(folder: Path, *, heads: int = 24, double: int = 2, single: int = 4) -> None:
    """FramePack on HunyuanVideo, which is 24 heads of 128, 20 double and 40 single blocks."""
    save_hunyuan_video(folder)
    AutoencoderKLHunyuanVideo().save_pretrained(folder / "vae")
    with made_in(torch.bfloat16):
        transformer = framepack_transformer(
            num_attention_heads=heads,
            attention_head_dim=128,
            num_layers=double,
            num_single_layers=single,
            num_refiner_layers=2,
            mlp_ratio=4.0,
            rope_axes_dim=(16, 56, 56),
        )
    transformer.save_pretrained(folder / "transformer")


def narrow_hunyuan_video(folder: Path) -> None:
    hunyuan_video(folder, heads=16, double=1, single=1)


MODELS: dict[str, Callable[[Path], None]] = {
    "Wan 2.1 1.3B": wan_1_3b,
    "HunyuanVideo, 2 and 4 blocks": hunyuan_video,
    "HunyuanVideo, 1 and 1 block, 16 heads": narrow_hunyuan_video,
}
SHORT = ("--seconds", "2", "--steps", "1")
CASES = (
    Case(name="video", model="Wan 2.1 1.3B", side=256, options=SHORT),
    Case(name="video, fp8", model="Wan 2.1 1.3B", side=256, options=SHORT, memory="fp8"),
    Case(name="video", model="HunyuanVideo, 2 and 4 blocks", side=192, options=SHORT),
    Case(name="LoRA", model="Wan 2.1 1.3B", side=256, recipe="lora"),
    Case(name="all weights", model="HunyuanVideo, 1 and 1 block, 16 heads", side=192, recipe="full"),
    Case(name="video", model="bundled", side=384, options=("--seconds", "10", "--steps", "2")),
)


# Carried out ---------------------------------------------------------------------------------------------


def run(line: Sequence[str]) -> str:
    """A command of framepack in this process: what it prints."""
    before, sys.argv = sys.argv, ["framepack", *line]
    printed, told = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
            framepack()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"framepack {' '.join(line)}: {told.getvalue().strip()}") from end
    finally:
        sys.argv = before
    return printed.getvalue()


def most_resident() -> int:
    """Bytes; getrusage has those of the process that started this one, too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def weigh(small: Sequence[str], command: Sequence[str], gaps: bool) -> tuple[int, int, float]:
    """Bytes held before a command and most above them, and its seconds.

    Args:
        gaps: leave it to glibc what is freed; else each tensor above 1 MiB is the system's again at once.
    """
    if not gaps:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)
    run(small)
    before, begun = resident_memory(), time.perf_counter()
    run(command)
    return before, most_resident() - before, time.perf_counter() - begun


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def adopted(name: str, folder: Path) -> str:
    """A packed folder of one of `MODELS`."""
    base, out = folder / f"{name}, base", folder / name
    base.mkdir()
    MODELS[name](base)
    run(["adopt", "--base", str(base), "--out", str(out)])
    return str(out)


def cached(model: str, side: int, folder: Path) -> Path:
    """A clip, encoded by a model."""
    videos, cache = folder / f"videos of {side}", folder / f"{Path(model).name}, {side}"
    if cache.is_dir():
        return cache
    if not videos.is_dir():
        videos.mkdir()
        wall = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
        write_video(videos / "0.mp4", (np.roll(wall, n, 1) for n in range(30 * CLIP)), 30)
        (videos / "0.txt").write_text("a red ball rolls")
    line = ["data", "cache", str(videos), "--model", model, "--out", str(cache), "--device", "cpu"]
    alone(run, [*line, "--area", f"{side}x{side}"])
    return cache


def bytes_told(case: Case, told: dict[str, Any]) -> int:
    if case.recipe is None:
        return next(choice["device"] for choice in told["choices"] if choice["policy"] == case.memory)
    return next(row["most"] for row in told["rows"] if row["history"] == PACKED)


def measured(case: Case, model: str, folder: Path) -> Found:
    estimated = bytes_told(case, json.loads(alone(run, case.estimate(model))))
    data, small = folder, folder
    if case.recipe is not None:
        data, small = cached(model, case.side, folder), cached("bundled", 128, folder)
    weighed = []
    for gaps in (False, True):
        with tempfile.TemporaryDirectory(dir=folder) as out:
            lines = case.small(small, Path(out)), case.command(model, data, Path(out))
            weighed.append(alone(weigh, *lines, gaps))
    (before, most, seconds), (_, with_gaps, other) = weighed
    return Found(
        before=before, measured=most, with_gaps=with_gaps, estimated=estimated, seconds=(seconds, other)
    )


def table(found: Sequence[tuple[Case, Found]]) -> Table:
    rows = []
    for case, f in found:
        what = f"{case.model}: {case.name}, {case.side} x {case.side}"
        sizes = [f"{size / GB:.2f}" for size in (f.estimated, f.measured, f.with_gaps, f.before)]
        rows.append((what, *sizes[:2], f"{f.ratio:.2f}", *sizes[2:]))
    return Table(
        title="Most memory at once",
        columns=(
            "command",
            "estimated, GB",
            "measured, GB",
            "estimated / measured",
            "with gaps, GB",
            "before, GB",
        ),
        rows=tuple(rows),
        notes=(
            "measured: resident memory at its peak, above what the process held before the command; what is "
            "freed goes back to the system",
            "with gaps: the same where glibc keeps of it what it will, as it does unless told otherwise",
            f"videos of {' '.join(SHORT)}; training of one sample a step, on clips of {CLIP} s",
        ),
    )


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    chosen = options.case or range(1, len(CASES) + 1)
    for number in chosen:
        if not 1 <= number <= len(CASES):
            raise InputError(f"--case {number}: give 1 to {len(CASES)}")
    if not Path("/proc/self/status").is_file():
        raise InputError("the most that a process has held is read from /proc: run this on Linux")
    found: list[tuple[Case, Found]] = []
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-", dir=options.folder) as place:
        models = {"bundled": "bundled"}
        for case in (CASES[number - 1] for number in chosen):
            if case.model not in models:
                models[case.model] = alone(adopted, case.model, Path(place))
            found.append((case, measured(case, models[case.model], Path(place))))
            console.print(f"{case.model}, {case.name}: {found[-1][1]}", style="dim")
    return Report(
        name="Estimates",
        command=command,
        machine=machine("cpu"),
        tables=(table(found),),
        data={"cases": [asdict(case) | asdict(f) | {"ratio": f.ratio} for case, f in found]},
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    numbers = "\n".join(f"{n}: {case.model}, {case.name}" for n, case in enumerate(CASES, 1))
    parser.add_argument("--case", type=int, nargs="+", help=f"all by default\n{numbers}")
    parser.add_argument("--folder", type=Path, help="for 9 GB of weights; the system's by default")
    return carry_out("estimate", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
