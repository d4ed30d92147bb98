"""Step caches and precisions: how much faster, and how far from what every step computed would have come to.

Held-out scenes of the procedural world are continued from their first frame, once plain and once with each
cache, from the same noise. Each is compared with the plain video of its own precision: closeness, whether
the object is still of the told colour and moves as told (evaluation.truth), and how far sharpness and colour
drift beyond the world's own. Beside them stands what fewer steps would have come to, which any cache has to
beat. Magnitude ratios that the model does not bring are measured first, on other scenes. A second table
compares the precisions, without a cache, with the first of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from drift import Clip, beyond, cell, held_out_clips, scores_of
from framepack.errors import InputError
from framepack.evaluation.truth import TRUTH, words_of
from framepack.generation.decode import decode_frames
from framepack.generation.pipeline import FramePackPipeline
from framepack.generation.placement import load_placed
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun, latents_of
from framepack.metrics.metric import Subject
from framepack.models.bundle import Bundle
from framepack.models.device import pick_device
from framepack.models.source import resolve_model
from framepack.models.step_cache import StepCache
from framepack.resources.machine import machine
from framepack.resources.policy import FULL, find_policy
from framepack.training.check import psnr, sentences
from shared.report import Report, Table, carry_out, check_file, finite

CACHES = (
    *("first-block=0.02", "first-block=0.05", "first-block=0.1", "first-block=0.2"),
    *("first-block=0.3", "first-block=0.5"),
    *("mag=0.03", "mag=0.06", "mag=0.12", "mag=0.24"),
    *("taylorseer=2", "taylorseer=3", "taylorseer=4"),
)
PLAIN = "plain"
CALIBRATED = 2
"""Scenes that magnitude ratios are measured on; none of those that are compared."""
FEEDS = ("ffn", "ff", "proj_mlp")
"""The feed-forward part of Wan's blocks, and of HunyuanVideo's two kinds."""
JUDGED = {"right-colour": "told colour", "right-motion": "moves as told"}
DRIFTS = {"laplacian-variance": "drift: sharpness, %", "colourfulness": "colourfulness, %"}


@dataclass(frozen=True)
class Kind:
    """One row: how a video is made. ``steps`` other than the model's own are what fewer steps come to.

    dtype: what the transformer computes in, or what it is stored in by a policy of that name.
    """

    dtype: str
    steps: int
    cache: str | None = None

    def label(self, own: int) -> str:
        return self.cache or (PLAIN if self.steps == own else f"{self.steps} steps")

    @property
    def value(self) -> str:
        """What sets it apart from others of its line in the plot."""
        return str(self.steps) if self.cache is None else self.cache.partition("=")[2]


@dataclass(kw_only=True)
class Made:
    """Of one row: its videos (frames, H, W, 3), and for every turn the seconds of sampling all of them.

    computed: share of blocks' calls that were computed, of those that plain has.
    """

    videos: list[NDArray[np.uint8]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    computed: float = 1.0


class Blocks:
    """Counts blocks that are really computed, by their feed-forward part, which every cache leaves out."""

    def __init__(self, transformer: Any) -> None:
        parts = [module for name, module in transformer.named_modules() if name.split(".")[-1] in FEEDS]
        self.count = 0
        self._handles = [part.register_forward_hook(self._one) for part in parts]

    def _one(self, *_: Any) -> None:
        self.count += 1

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def run_of(bundle: Bundle, clip: Clip, index: int, kind: Kind, options: argparse.Namespace) -> PreparedRun:
    request = GenerateRequest(
        prompt=sentences([clip.pair.words], index)[0],
        image=Image.fromarray(clip.pair.picture),
        frames=options.frames,
        method=options.method,
        untrained=True,
        steps=kind.steps,
        guidance=options.guidance,
        seed=options.seed + index,
        step_cache=kind.cache,
        out=options.folder / "unwritten.mp4",
        workdir=Path(tempfile.mkdtemp(dir=options.folder)),
    )
    return prepare(request, bundle)


def sampled(run: PreparedRun, device: torch.device) -> tuple[torch.Tensor, float]:
    """Latents, and the seconds that making all sections took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    latents = latents_of(run, lambda event: None)
    return latents, time.perf_counter() - begun


def shown(run: PreparedRun, latents: torch.Tensor) -> NDArray[np.uint8]:
    return np.stack([*decode_frames(run.bundle.codec, lambda at: latents[:, :, list(at)], run.plan.shown)])


def measure(
    bundles: dict[str, Bundle],
    kinds: Sequence[Kind],
    clips: Sequence[Clip],
    options: argparse.Namespace,
    console: Console,
) -> dict[Kind, Made]:
    """All rows in turn, several times over, so that what else the machine does falls on all of them alike."""
    found = {kind: Made() for kind in kinds}
    counted: dict[Kind, int] = {}
    for turn in range(options.repeats):
        for kind in kinds if turn % 2 == 0 else reversed(kinds):
            bundle, seconds = bundles[kind.dtype], 0.0
            blocks = Blocks(bundle.transformer)
            for index, clip in enumerate(clips):
                run = run_of(bundle, clip, index, kind, options)
                latents, spent = sampled(run, bundle.device)
                seconds += spent
                if turn == 0:
                    found[kind].videos.append(shown(run, latents))
            blocks.remove()
            counted[kind] = blocks.count
            found[kind].seconds.append(seconds)
            console.print(f"{kind.dtype}, {kind.label(options.steps)}: {seconds:.2f} s", style="dim")
    for kind, made in found.items():
        plain = counted[Kind(kind.dtype, options.steps)]
        made.computed = counted[kind] / plain
    return found


# What is told ----------------------------------------------------------------------------------------


def judged(made: Made, clips: Sequence[Clip], fps: float) -> dict[str, list[float]]:
    """By measure one number a clip, in %; none where the truth says nothing."""
    found: dict[str, list[float]] = {name: [] for name in JUDGED}
    for video, clip in zip(made.videos, clips, strict=True):
        subject = Subject(frames=video, fps=fps, words=words_of(" ".join(clip.pair.words)))
        for name in JUDGED:
            metric = TRUTH[name]
            scores = metric.load("cpu")(subject) if metric.lacks(subject) is None else np.array([np.nan])
            kept = scores[np.isfinite(scores)]
            found[name].append(100 * float(kept.mean()) if kept.size else float("nan"))
    return found


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind against another one's videos: ratios of time turn by turn, the rest clip by clip."""

    kind: Kind
    faster: list[float]
    computed: float
    psnr: list[float]
    judged: dict[str, list[float]]
    drifts: dict[str, list[float]]


def rows_of(
    found: dict[Kind, Made], plains: dict[Kind, Kind], clips: Sequence[Clip], fps: float
) -> list[Row]:
    """Rows of the kinds that ``plains`` names, each against the one it is compared with."""
    truth = scores_of([clip.truth for clip in clips])
    rows = []
    for kind, against in plains.items():
        made, plain = found[kind], found[against]
        scores = scores_of(made.videos)
        rows.append(
            Row(
                kind=kind,
                faster=[ours / own for ours, own in zip(plain.seconds, made.seconds, strict=True)],
                computed=made.computed,
                psnr=[psnr(a[1:], b[1:]) for a, b in zip(made.videos, plain.videos, strict=True)],
                judged=judged(made, clips, fps),
                drifts={
                    name: [
                        100 * beyond(s, t).absolute for s, t in zip(scores[name], truth[name], strict=True)
                    ]
                    for name in DRIFTS
                },
            )
        )
    return rows


def table_of(rows: Sequence[Row], plains: dict[Kind, Kind], title: str, options: argparse.Namespace) -> Table:
    def line(row: Row) -> tuple[str, ...]:
        return (
            f"{row.kind.dtype}, {row.kind.label(options.steps)}",
            f"{np.median(row.faster):.2f} x",
            f"{row.computed:.0%}",
            "-" if plains[row.kind] == row.kind else cell(row.psnr),
            *(cell(row.judged[name]) for name in JUDGED),
            *(cell(row.drifts[name]) for name in DRIFTS),
        )

    told = (f"{name}, %" for name in JUDGED.values())
    return Table(
        title=f"{title}: {options.clips} clips of {options.frames} frames, {options.steps} steps a section",
        columns=("precision, cache", "faster", "computed", "PSNR to plain, dB", *told, *DRIFTS.values()),
        rows=tuple(map(line, rows)),
        notes=(
            f"faster: time of all sections, plain over this, median of {options.repeats} turns; computed: "
            "share of the blocks' calls",
            "the rest: mean over clips [95 % bootstrap interval]; PSNR without the given frame, at most 60",
            "told colour, moves as told: share of frames and windows; a video that plain has wrong counts as "
            "well",
            "drift: |first 15 % - last 15 %| of the difference to the scene, in % of the scene's mean",
            "plain: of the caches that of their own precision, of the precisions the first of them",
        ),
    )


COLOURS = {"first-block": "#1f6fb4", "mag": "#c8552b", "taylorseer": "#3b8f4f", "steps": "#66737d"}


def plot(path: Path, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Closeness against time by kind of cache, one panel a precision; without values that skip nothing."""
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row.kind.dtype for row in rows))
    figure = Figure(figsize=(4.6 * len(dtypes), 4), layout="constrained")
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        for name, colour in COLOURS.items():
            mine = [
                row
                for row in rows
                if row.kind.dtype == dtype
                and (row.kind.cache or "steps").partition("=")[0] == name
                and row.computed < 1
            ]
            if not mine:
                continue
            points = sorted(
                ((float(np.median(r.faster)), float(np.mean(r.psnr)), r.kind) for r in mine),
                key=lambda point: point[:2],
            )
            label = "fewer steps" if name == "steps" else name
            x, y = [point[0] for point in points], [point[1] for point in points]
            axes.plot(x, y, "o-", color=colour, label=label, ms=5)
            right, above = name in ("steps", "first-block"), name == "steps"
            for *point, kind in points:
                axes.annotate(
                    kind.value,
                    point,
                    xytext=(4 if right else -4, 4 if above else -4),
                    ha="left" if right else "right",
                    va="bottom" if above else "top",
                    textcoords="offset points",
                    fontsize=7.5,
                    color=colour,
                )
        axes.set_title(dtype)
        axes.set_xlabel("times as fast as plain")
        axes.axvline(1, color="#33383d", lw=0.8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("PSNR to plain, dB")
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def findings_of(rows: Sequence[Row], options: argparse.Namespace) -> list[str]:
    """Of each precision, which caches are faster than plain, and which of them closer than as fast steps."""
    lines = []
    for row in rows:
        if row.kind.cache is None:
            continue
        fewer = [r for r in rows if r.kind.cache is None and r.kind.dtype == row.kind.dtype]
        rivals = [r for r in fewer if np.median(r.faster) >= np.median(row.faster)]
        best = max((float(np.mean(r.psnr)) for r in rivals), default=float("-inf"))
        own = float(np.mean(row.psnr))
        verdict = "closer to plain than" if own > best else "no closer to plain than"
        if np.median(row.faster) <= 1:
            told = "no faster than plain"
        elif rivals:
            told = f"{np.median(row.faster):.2f} x as fast, {verdict} fewer steps that are as fast"
        else:
            told = f"{np.median(row.faster):.2f} x as fast, faster than any fewer steps here"
        lines.append(f"{row.kind.dtype}, {row.kind.cache}: {told}")
    return lines


def as_data(row: Row) -> dict[str, Any]:
    measured = {
        name: [finite(value) for value in values] for name, values in (row.judged | row.drifts).items()
    }
    return {
        **{"dtype": row.kind.dtype, "steps": row.kind.steps, "cache": row.kind.cache},
        **{"faster": row.faster, "computed": row.computed, "psnr": row.psnr},
        **measured,
    }


# The benchmark -----------------------------------------------------------------------------------------


def calibrate(bundle: Bundle, clips: Sequence[Clip], options: argparse.Namespace) -> tuple[float, ...]:
    """Magnitude ratios, one a step: means over clips."""
    pipe, rows = FramePackPipeline(bundle), []
    for index, clip in enumerate(clips):
        rows.append(
            pipe.calibrate_step_cache(
                sentences([clip.pair.words], index)[0],
                Image.fromarray(clip.pair.picture),
                num_frames=options.frames,
                method=options.method,
                untrained=True,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                seed=options.seed + index,
            )
        )
    return tuple(round(float(ratio), 5) for ratio in np.mean(rows, axis=0))


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.plot is not None:
        check_file(options.plot, (".png",))
    if options.clips < 1 or options.frames < 7 or options.repeats < 1:
        raise InputError(
            f"{options.clips} clips of {options.frames} frames, {options.repeats} turns: give 1 or more, of "
            "7 or more, and 1 or more"
        )
    device = pick_device(options.device)
    where = machine(str(device))
    source = resolve_model(options.model)
    computes = options.dtypes[-1]
    bundles = {
        name: load_placed(
            source,
            find_policy(name if name in options.stored else FULL),
            device,
            getattr(torch, computes if name in options.stored else name),
        )
        for name in (*options.dtypes, *options.stored)
    }
    first = next(iter(bundles.values()))
    options.steps = options.steps or first.spec.steps
    clips = held_out_clips(first, options.clips + CALIBRATED, options.frames)
    clips, others = clips[: options.clips], clips[options.clips :]
    ratios = first.mag_ratios
    if not ratios or options.calibrate is not None:
        console.print("measuring magnitude ratios", style="dim")
        ratios = calibrate(first, others, options)
    if options.calibrate is not None:
        options.calibrate.write_text(json.dumps(ratios) + "\n", encoding="utf-8")
    bundles = {name: replace(bundle, mag_ratios=ratios) for name, bundle in bundles.items()}
    for cache in options.caches:
        StepCache.parse(cache)  # refuses before the long run
    kinds = [
        kind
        for dtype in options.dtypes
        for kind in (
            Kind(dtype, options.steps),
            *(Kind(dtype, count) for count in options.fewer if count < options.steps),
            *(Kind(dtype, options.steps, cache) for cache in options.caches),
        )
    ]
    kinds += [Kind(name, options.steps) for name in options.stored]
    plains = {kind: Kind(kind.dtype, options.steps) for kind in kinds if kind.dtype in options.dtypes}
    precisions = {Kind(name, options.steps): kinds[0] for name in bundles}
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as name:
        options.folder = Path(name)
        found = measure(bundles, kinds, clips, options, console)
    rows = rows_of(found, plains, clips, first.spec.fps)
    precise = rows_of(found, precisions, clips, first.spec.fps)
    if options.plot is not None:
        plot(options.plot, rows, options)
    return Report(
        name="Step caches",
        command=command,
        machine=where,
        tables=(
            table_of(rows, plains, "Step caches", options),
            table_of(precise, precisions, "Precisions", options),
        ),
        findings=tuple(findings_of(rows, options)),
        data={
            "clips": options.clips,
            "frames": options.frames,
            "steps": options.steps,
            "ratios": list(ratios),
            "rows": list(map(as_data, rows)),
            "precisions": list(map(as_data, precise)),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="a model of the procedural world")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--frames", type=int, default=49, help="of each clip, the given one included")
    parser.add_argument("--caches", nargs="*", default=CACHES, help="as --step-cache takes them")
    parser.add_argument("--fewer", nargs="*", type=int, default=(6, 5, 4, 3), help="steps without a cache")
    parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"), help="with all caches")
    parser.add_argument(
        "--stored", nargs="*", default=("fp8",), help="fp8, nf4: without a cache, computing in the last dtype"
    )
    parser.add_argument("--method", help="the model's own by default")
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--repeats", type=int, default=3, help="turns that are timed")
    parser.add_argument("--calibrate", type=Path, help="measure magnitude ratios anew, and write them there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="PyTorch's choice by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path, help=".png")
    return carry_out("caches", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
