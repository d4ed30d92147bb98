"""What one choice in training does: short fine-tunes of the bundled model that differ in nothing else.

Every row starts from the same weights and takes as many steps on the same clips of the procedural world,
forward only. Then it continues held-out scenes from their first frame, and is compared with the scene
itself: for closeness near the start, sharpness and obedience throughout, and drift from start to end.

A row that is done is kept in --work and not made again; one that was stopped goes on from its last save.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from drift import MEAN, Clip, cell, held_out_clips, scores_of, summary
from framepack.data.fingerprint import module_digest
from framepack.metrics.motion import direction
from framepack.models.bundle import Bundle
from framepack.models.device import pick_device, pick_dtype
from framepack.models.loading import load_bundle, load_part
from framepack.models.spec import BUNDLED
from framepack.recipes.bundled import bundled
from framepack.recipes.override import override
from framepack.resources.machine import machine
from framepack.training.check import make_videos, psnr
from framepack.training.config import TrainConfig
from framepack.training.loop import train
from shared.report import Report, Table, carry_out, finite

NEAR = 25
"""Frames in which a continuation can still be where the scene is."""
STARTED = "as it came"
PLAIN = ("objective.corruption.noise=0",)
SUITES: dict[str, dict[str, tuple[str, ...]]] = {
    # What the history looks like in training.
    "history": {
        "plain": PLAIN,
        "noise": ("objective.corruption.noise=0.3", "objective.corruption.share=1"),
        "+D, K = 16": (*PLAIN, "codewords=16"),
        "+D, K = 128": (*PLAIN, "codewords=128"),
        "+D, K = 1024": (*PLAIN, "codewords=1024"),
    },
    # The flow shift, in training and in sampling. A section has 384 noisy tokens.
    "shift": {
        "low: 1": ("objective.shift=1",),
        "released anchors: 1.69": ("objective.shift={}",),
        "the model's own: 2.5": ("objective.shift=2.5",),
        "extreme: 7": ("objective.shift=7",),
    },
}

Scores = dict[str, list[float]]
"""By measure, one number a clip."""


MEASURES = {
    "psnr": f"PSNR of {NEAR} frames, dB",
    "sharpness": "sharpness, % of the scene's",
    "obeys": "moves as told, %",
    "drift-sharpness": "drift: sharpness, %",
    "drift-colour": "colourfulness, %",
    "drift-lab": "mean Lab",
}


def config_of(options: argparse.Namespace, settings: Sequence[str]) -> TrainConfig:
    """A short run of the bundled recipe from the bundled weights, on one process."""
    codec = module_digest(load_part("codec", BUNDLED / "codec"))
    short = [f"init={options.model}", f"steps={options.steps}", f"micro={options.batch // 2}", "draws=2"]
    short += ["processes=1", "rate=0.001", "warmup=20", "ema=0.98", "save_every=50", "sheet_every=1000000"]
    short += [f"cache.clips={options.cached}", 'draw.methods={"vanilla": 1}', *settings]
    return override(bundled(codec), *short, *options.set)


def train_row(folder: Path, config: TrainConfig, clips: Path) -> Path:
    """The model of a row; all rows read one cache of clips."""
    folder.mkdir(parents=True, exist_ok=True)
    clips.mkdir(parents=True, exist_ok=True)
    if not (folder / "cache").exists():
        (folder / "cache").symlink_to(clips.resolve(), target_is_directory=True)
    return train(config, folder, BUNDLED / "codec")


def score(
    bundle: Bundle,
    clips: Sequence[Clip],
    truth: dict[str, list[NDArray[np.float64]]],
    frames: int,
    batch: int,
) -> Scores:
    """What a model makes of held-out scenes, against them."""
    videos = make_videos(
        bundle,
        [clip.pair for clip in clips],
        bundle.spec.method("vanilla"),
        image=True,
        frames=frames,
        guidance=1.0,
        batch=batch,
    )
    scores = scores_of(videos)
    drifts = summary(scores, truth)
    sharp = zip(scores["laplacian-variance"], truth["laplacian-variance"], strict=True)
    pairs = list(zip(videos, clips, strict=True))
    return {
        "psnr": [psnr(video[1:NEAR], clip.truth[1:NEAR]) for video, clip in pairs],
        "sharpness": [100 * float(own.mean() / true.mean()) for own, true in sharp],
        "obeys": [
            100.0 * (direction(video[:NEAR], clip.pair.colour) == clip.pair.direction)
            for video, clip in pairs
        ],
        "drift-sharpness": drifts["laplacian-variance"]["beyond"],
        "drift-colour": drifts["colourfulness"]["beyond"],
        "drift-lab": drifts[MEAN]["absolute"],
    }


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def table_of(results: dict[str, Scores], losses: dict[str, float], title: str) -> Table:
    rows = [
        (name, f"{losses[name]:.4f}" if name in losses else "-", *(cell(found[m]) for m in MEASURES))
        for name, found in results.items()
    ]
    return Table(
        title=title,
        columns=("trained", "loss", *MEASURES.values()),
        rows=tuple(rows),
        notes=(
            "mean over clips [95 % bootstrap interval]; left of the drifts more is better, of drifts less",
            "loss: mean of the last tenth of the steps; under another shift it is another loss",
            "drift: |first 15 % - last 15 %| of the difference to the scene, in % of the scene's mean; mean "
            "Lab: of the video itself",
        ),
    )


def paired_table(results: dict[str, Scores], reference: str) -> Table:
    """Clip by clip against one row, which is far surer than comparing two intervals."""
    rows = []
    for name, found in results.items():
        if name in (reference, STARTED):
            continue
        cells = (
            cell([a - b for a, b in zip(found[m], results[reference][m], strict=True)], signed=True)
            for m in MEASURES
        )
        rows.append((name, *cells))
    return Table(
        title=f"Less '{reference}', clip by clip",
        columns=("trained", *MEASURES.values()),
        rows=tuple(rows),
        notes=("an interval without 0 is a difference",),
    )


def last_loss(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = rows[-max(len(rows) // 10, 1) :]
    return float(np.mean([row["loss"] for row in last]))


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    device = pick_device(options.device)
    where = machine(str(device))
    start = load_bundle(options.model, device, pick_dtype("auto", device))
    clips = held_out_clips(start, options.clips, options.frames)
    truth = scores_of([clip.truth for clip in clips])
    results: dict[str, Scores] = {}
    losses: dict[str, float] = {}
    seconds: dict[str, float] = {}
    wanted = {STARTED: (), **SUITES[options.suite]}
    settings: dict[str, object] = {}
    for name, changes in wanted.items():
        folder, begun = options.work / slug(name), time.perf_counter()
        done = folder / f"scores-{options.clips}x{options.frames}.json"
        if name != STARTED:
            config = config_of(options, changes)
            settings[name] = asdict(config)
            model = train_row(folder, config, options.work / "cache")
            losses[name] = last_loss(folder)
        if not done.exists():
            console.print(f"{name}: continuing {options.clips} scenes", style="dim")
            bundle = start if name == STARTED else load_bundle(str(model), device, pick_dtype("auto", device))
            found = score(bundle, clips, truth, options.frames, options.batch_of_clips)
            done.parent.mkdir(parents=True, exist_ok=True)
            done.write_text(json.dumps({"scores": found, "seconds": time.perf_counter() - begun}))
        told = json.loads(done.read_text())
        results[name], seconds[name] = told["scores"], told["seconds"]
    reference = next(iter(SUITES[options.suite])) if options.suite == "history" else "the model's own: 2.5"
    title = (
        f"{options.suite}: {options.steps} steps of {options.batch} samples, then {options.clips} clips of "
        f"{options.frames} frames"
    )
    return Report(
        name="One choice in training",
        command=command,
        machine=where,
        tables=(table_of(results, losses, title), paired_table(results, reference)),
        findings=tuple(f"{name}: {value / 60:.1f} min" for name, value in seconds.items()),
        data={
            "suite": options.suite,
            "losses": losses,
            "scores": {n: {m: [finite(v) for v in vs] for m, vs in s.items()} for n, s in results.items()},
            "settings": settings,
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="history")
    parser.add_argument("--model", default="bundled", help="a model of the procedural world, to start from")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16, help="samples of a step")
    parser.add_argument("--cached", type=int, default=512, help="clips to learn from")
    parser.add_argument("--clips", type=int, default=20, help="held-out scenes")
    parser.add_argument("--frames", type=int, default=80, help="of each, the given one included")
    parser.add_argument("--batch-of-clips", type=int, default=5, help="clips made at once")
    parser.add_argument("--set", action="append", default=[], help="change a field of all rows: path=value")
    parser.add_argument("--work", type=Path, default=Path("runs/variants"), help="folder of the runs")
    parser.add_argument("--device", default="auto")
    return carry_out("variants", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
