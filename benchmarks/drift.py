"""Drift: how far sharpness and colour at the end of a long clip are from those at its start.

Held-out scenes of the procedural world are continued from their first frame by every method. The
same scenes drawn by the world itself, through the codec, tell how much contrast there is without any
drift: shapes come and go. "Beyond the world's" is the drift of the frame-by-frame difference to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from framepack.evaluation.clips import held_out, through_codec
from framepack.metrics.bootstrap import Interval, bootstrap
from framepack.metrics.drift import SHARE, Drift, drift
from framepack.metrics.quality import QUALITIES
from framepack.models.bundle import Bundle
from framepack.models.device import pick_device, pick_dtype
from framepack.models.loading import load_bundle
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.resources.machine import machine
from framepack.training.check import Pair, make_videos
from shared.report import Report, Table, carry_out, finite

METHODS = ("vanilla", "f1", "anti-drifting", "inverted")
WORLD = "the world"
SHOWN = {"laplacian-variance": "sharpness", "colourfulness": "colourfulness"}
MEAN = "mean-lab"

Results = dict[str, dict[str, dict[str, list[float]]]]
"""By method, metric and kind of drift: one number a clip."""


@dataclass(frozen=True)
class Clip:
    """A held-out pair, and its video (frames, H, W, 3) as the world draws it and the codec shows it."""

    pair: Pair
    truth: NDArray[np.uint8]


def held_out_clips(bundle: Bundle, count: int, frames: int) -> list[Clip]:
    """Scenes never trained on, with one motion and one sky, so that their words hold throughout."""
    size = bundle.spec.buckets[0]
    clips = []
    for scene in held_out(count, frames, size):
        drawn = scene.render(range(frames), *size)
        pair = Pair(drawn[0], scene.words(0, frames), scene.colour, scene.motions[0].direction)
        clips.append(Clip(pair, through_codec(bundle, drawn)))
    return clips


def scores_of(videos: Sequence[NDArray[np.uint8]]) -> dict[str, list[NDArray[np.float64]]]:
    """Scores of every frame by metric, a list with one entry a video."""
    return {name: [metric(video) for video in videos] for name, metric in QUALITIES.items()}


def beyond(scores: NDArray[np.float64], truth: NDArray[np.float64]) -> Drift:
    """Drift of what a video's scores differ by from the truth's, in units of the truth's mean."""
    return drift((scores - truth) / max(float(truth.mean()), 1e-9))


def summary(
    scores: dict[str, list[NDArray[np.float64]]], truth: dict[str, list[NDArray[np.float64]]]
) -> dict[str, dict[str, list[float]]]:
    """By metric the drift of every clip: absolute, relative (%), beyond the world's (%), and its sign."""
    found = {}
    for name in scores:
        drifts = [drift(values) for values in scores[name]]
        rows: dict[str, list[float]] = {"absolute": [d.absolute for d in drifts]}
        if name != MEAN:
            rows["relative"] = [d.relative for d in drifts]
            past = [beyond(s, t) for s, t in zip(scores[name], truth[name], strict=True)]
            rows["beyond"] = [100 * d.absolute for d in past]
            rows["change"] = [100 * d.change for d in past]
        found[name] = rows
    return found


def cell(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean over clips with its 95 % interval; clips whose start is 0 have no relative drift."""
    found = interval(values)
    if found is None:
        return "-"
    sign = "+" if signed else ""
    return f"{found.value:{sign}.1f} [{found.low:{sign}.1f}, {found.high:{sign}.1f}]"


def interval(values: Sequence[float]) -> Interval | None:
    kept = [value for value in values if np.isfinite(value)]
    return bootstrap(kept) if kept else None


def contrast_table(results: Results, labels: dict[str, str], *, clips: int, frames: int) -> Table:
    columns = ["method"]
    for shown in SHOWN.values():
        columns += [f"{shown}, %", "beyond the world's, %"]
    rows = []
    for name, found in results.items():
        row = [labels[name]]
        for metric in SHOWN:
            values = found[metric]
            row += [cell(values["relative"]), "-" if name == WORLD else cell(values["beyond"])]
        rows.append((*row, cell(found[MEAN]["absolute"])))
    return Table(
        title=f"Start-end contrast, {clips} clips of {frames} frames",
        columns=(*columns, "mean colour, Lab"),
        rows=tuple(rows),
        notes=(
            f"|mean of the first {SHARE:.0%} - mean of the last {SHARE:.0%}| of frames; mean over clips "
            "[95 % bootstrap interval]; lower is better",
            "sharpness: variance of the Laplacian, colourfulness: Hasler and Suesstrunk, in % of the start",
            f"{WORLD}: the same scenes drawn, not generated, through the codec; beyond it: drift of the "
            "difference to it, in % of its mean",
        ),
    )


def direction_table(results: Results, labels: dict[str, str]) -> Table:
    """Which way, and against vanilla clip by clip, which is far surer than comparing two intervals."""
    columns = ["method"]
    for shown in SHOWN.values():
        columns += [f"{shown}, %", "less vanilla's"]
    rows = []
    for name, found in results.items():
        if name == WORLD:
            continue
        row = [labels[name]]
        for metric in SHOWN:
            row += [cell(found[metric]["change"], signed=True), _paired(results, name, metric, "beyond")]
        rows.append((*row, _paired(results, name, MEAN, "absolute")))
    return Table(
        title="Which way, and against vanilla",
        columns=(*columns, "mean Lab, less vanilla's"),
        rows=tuple(rows),
        notes=(
            "%: end - start, beyond the world's; below 0 the video blurs, or pales",
            "less vanilla's: clip by clip; below 0 drifts less, an interval without 0 is a difference",
        ),
    )


def _paired(results: Results, name: str, metric: str, kind: str) -> str:
    if name == "vanilla" or "vanilla" not in results:
        return "-"
    pairs = zip(results[name][metric][kind], results["vanilla"][metric][kind], strict=True)
    return cell([own - vanilla for own, vanilla in pairs], signed=True)


def sections_of(bundle: Bundle, method: str, frames: int) -> int:
    timeline = Timeline(frames=frames, fps=bundle.spec.fps, stride=bundle.spec.temporal_stride, known=(0,))
    return len(plan(timeline, bundle.spec.method(method, untrained=True)).sections)


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    device = pick_device(options.device)
    bundle = load_bundle(options.model, device, pick_dtype("auto", device))
    where = machine(str(device))
    clips = held_out_clips(bundle, options.clips, options.frames)
    truth = scores_of([clip.truth for clip in clips])
    results: Results = {WORLD: summary(truth, truth)}
    labels = {WORLD: WORLD}
    sections = {}
    for name in options.methods:
        method = bundle.spec.method(name, untrained=True)
        untrained = method not in bundle.spec.methods.values()
        labels[name] = f"{name} (untrained)" if untrained else name
        sections[name] = sections_of(bundle, name, options.frames)
        videos = make_videos(
            bundle,
            [clip.pair for clip in clips],
            method,
            image=True,
            frames=options.frames,
            seed=options.seed,
            batch=options.batch,
            guidance=options.guidance,
            on_batch=lambda done, name=name: console.print(  # type: ignore[misc]
                f"{name}: {done}/{len(clips)} clips", style="dim"
            ),
        )
        results[name] = summary(scores_of(videos), truth)
    tables = (
        contrast_table(results, labels, clips=len(clips), frames=options.frames),
        direction_table(results, labels),
    )
    shown = ", ".join(f"{name} {count}" for name, count in sections.items())
    return Report(
        name="Drift",
        command=command,
        machine=where,
        tables=tables,
        findings=(f"sections a clip: {shown}",),
        data={
            "clips": len(clips),
            "frames": options.frames,
            "share": SHARE,
            "sections": sections,
            "drift": {
                name: {
                    metric: {
                        kind: {"clips": [finite(v) for v in values], "mean": _interval_json(values)}
                        for kind, values in rows.items()
                    }
                    for metric, rows in found.items()
                }
                for name, found in results.items()
            },
        },
    )


def _interval_json(values: Sequence[float]) -> dict[str, float] | None:
    found = interval(values)
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="name or folder")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--frames", type=int, default=80, help="of each clip, the given one included")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=5, help="clips made at once")
    parser.add_argument("--device", default="auto")
    return carry_out("drift", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
