"""Seams: does a video jump where one section meets another, a keyframe, a clip, or its own start?

A jump is a frame that differs more from the one before than frames around it do. The difference of two frames
is the mean over pixels of their distance in CIE Lab (1976); it is divided by the median of its neighbours, up
to four on either side that are no borders themselves. Seamless is 1, give or take what the same measure finds
at frames that are no borders: the control.

Held-out scenes of the procedural world are made as ``framepack generate`` makes them: in every order from
their first frame, with later frames of theirs as keyframes, from and to their own clips, and as loops. The
world itself, through the codec, tells what the measure finds where there are no sections.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from framepack.data.world import Motion, Scene
from framepack.errors import InputError
from framepack.evaluation.clips import held_out, through_codec
from framepack.generation.decode import decode_frames
from framepack.generation.given import Keyframe, with_copies
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun, latents_of
from framepack.metrics.bootstrap import Interval, bootstrap
from framepack.metrics.colour import difference
from framepack.models.bundle import Bundle
from framepack.models.device import pick_device, pick_dtype
from framepack.models.loading import load_bundle
from framepack.planning.planners import tiles
from framepack.resources.machine import machine
from framepack.training.check import sentences
from framepack.video.io import write_video
from shared.report import Report, Table, carry_out, check_file

METHODS = ("vanilla", "f1", "anti-drifting", "inverted", "planned")
AROUND = 4
"""Neighbours on either side."""
UNSEEN = 0.1
"""Mean distance in Lab below which a difference shows nothing; a still video is not measured finer."""
CLOSED = "end | start"
WORLD = "the world"
SHARES = (0.5, 0.95)
RESAMPLES = 2000

Frames = NDArray[np.uint8]
Borders = dict[int, str]
"""Step (from frame i to frame i + 1) -> what meets there."""


# The measure -----------------------------------------------------------------------------------------


def differences(frames: Frames, *, closed: bool = False) -> NDArray[np.float64]:
    """Mean distance in Lab of each frame to the next, (N - 1,); ``closed``: of the last to the first too."""
    following = [*range(1, len(frames)), *([0] if closed else [])]
    return np.array([difference(frames[i], frames[j]).mean() for i, j in enumerate(following)])


def ratios(
    steps: NDArray[np.float64], borders: Sequence[int], *, closed: bool = False
) -> NDArray[np.float64]:
    """Each difference (N,) over the median of up to ``AROUND`` neighbours on either side that are no borders.

    NaN where there is no such neighbour. ``closed``: the last one's neighbours are the first ones.
    """
    found, count = np.full(len(steps), np.nan), len(steps)
    for i in range(count):
        beside: list[float] = []
        for way in (-1, 1):
            on_this_side = (i + way * n for n in range(1, count))
            if closed:
                places = [j % count for j in on_this_side if j % count != i]
            else:
                places = [j for j in on_this_side if 0 <= j < count]
            beside += [steps[j] for j in places if j not in borders][:AROUND]
        if beside:
            found[i] = steps[i] / max(float(np.median(beside)), UNSEEN)
    return found


# Where sections meet ---------------------------------------------------------------------------------


def borders_of(run: PreparedRun) -> Borders:
    """The borders of a run's plan, by what lies before and after them."""
    shown = run.plan.shown
    owner: dict[int, tuple[str, int]] = {}
    for index, span in enumerate(tiles(run.plan.timeline, run.plan.method)):
        owner |= dict.fromkeys(span.frames, ("section", index))
    for index, each in enumerate(run.given):
        owner |= dict.fromkeys(each.frames, ("clip" if each.clip else "picture", index))
    # The first section of a loop is made before all else: its timeline counts it as known.
    owner |= {frame: ("section", -1) for frame in range(run.plan.loop) if frame not in owner}
    found = {}
    for latent in range(1, shown.latent_frames):
        if owner[latent - 1] != owner[latent]:
            found[shown.frames_of(latent).start - 1] = f"{owner[latent - 1][0]} | {owner[latent][0]}"
    if run.plan.loop:
        found[shown.frames - 1] = CLOSED
    return found


def made_steps(run: PreparedRun) -> set[int]:
    """Steps between two frames that were made: those of a clip are nobody's doing."""
    shown = run.plan.shown
    given = {
        frame
        for each in run.given
        for latent in each.frames
        if latent < shown.latent_frames
        for frame in shown.frames_of(latent)
    }
    return {i for i in range(shown.frames - 1) if not {i, i + 1} & given}


# What is made ----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Measured:
    """Ratios by what meets, one array a clip, (clips, borders of that kind), and those of the control."""

    seams: dict[str, list[list[float]]] = field(default_factory=dict)
    control: list[list[float]] = field(default_factory=list)
    method: str = ""

    def add(self, frames: Frames, borders: Borders, inner: set[int]) -> None:
        """One clip's."""
        closed = CLOSED in borders.values()
        found = ratios(differences(frames, closed=closed), [*borders], closed=closed)
        for kind in dict.fromkeys(borders.values()):
            self.seams.setdefault(kind, []).append([float(found[i]) for i in borders if borders[i] == kind])
        self.control.append([float(found[i]) for i in sorted(inner - {*borders})])


def round_trip(scene: Scene, index: int) -> Scene:
    """The scene with a motion that leads out of the frame and round to where it was, the camera still."""
    return replace(scene, motions=(Motion(start=0, direction=("right", "left")[index % 2]),), camera="")


class Maker:
    """Makes clips of one model, as ``framepack generate`` does but in memory."""

    def __init__(self, bundle: Bundle, options: argparse.Namespace, folder: Path) -> None:
        self.bundle, self.options, self.folder = bundle, options, folder
        self.size = bundle.spec.buckets[0]

    def run(self, scene: Scene, index: int, **values: Any) -> PreparedRun:
        options = self.options
        request = GenerateRequest(
            prompt=sentences([scene.words(0, options.frames)], index)[0],
            seed=options.seed + index,
            steps=options.steps,
            guidance=options.guidance,
            untrained=True,
            out=self.folder / "unwritten.mp4",
            **values,
        )
        return prepare(request, self.bundle)

    def frames(self, run: PreparedRun, *, copied: bool = False) -> Frames:
        """(N, H, W, 3) of the video; ``copied``: those of clips as they were given."""
        latents = latents_of(run, lambda event: None)
        shown = run.plan.shown
        decoded = decode_frames(run.bundle.codec, lambda at: latents[:, :, list(at)], shown)
        return np.stack([*(with_copies(decoded, run.given, shown) if copied else decoded)])

    def drawn(self, scene: Scene, frames: Sequence[int]) -> Frames:
        return scene.render(frames, *self.size)

    def picture(self, scene: Scene, frame: int = 0) -> Image.Image:
        return Image.fromarray(self.drawn(scene, [frame])[0])

    def clip(self, scene: Scene, index: int, frames: range) -> Path:
        path = self.folder / f"{index}-{frames.start}.mp4"
        if not path.exists():
            write_video(path, self.drawn(scene, frames), self.bundle.spec.fps)
        return path


Case = Iterator[tuple[str, PreparedRun, bool]]
"""Name of a row, a run, whether its clips are copied."""


def orders(maker: Maker, scene: Scene, index: int) -> Case:
    for name in maker.options.methods:
        run = maker.run(scene, index, image=maker.picture(scene), method=name, frames=maker.options.frames)
        yield name, run, False


def keyframes(maker: Maker, scene: Scene, index: int) -> Case:
    """The start, a frame at the middle and the last one given."""
    frames, fps = maker.options.frames, maker.bundle.spec.fps
    middle = frames // 2
    given = (
        Keyframe(at=middle / fps, picture=maker.picture(scene, middle)),
        Keyframe(picture=maker.picture(scene, frames - 1)),
    )
    run = maker.run(scene, index, image=maker.picture(scene), keyframes=given, frames=frames)
    yield "keyframes", run, False


def extension(maker: Maker, scene: Scene, index: int) -> Case:
    """A third of the frames in each clip, and a third made after the one, before the other, between both."""
    third = max(2, maker.options.frames // 3)
    before = maker.clip(scene, index, range(third))
    after = maker.clip(scene, index, range(2 * third, 3 * third))
    yield "from a clip", maker.run(scene, index, from_clip=before, frames=third), False
    yield "to a clip", maker.run(scene, index, to_clip=after, frames=third), False
    between = maker.run(scene, index, from_clip=before, to_clip=after, frames=third)
    yield "between two clips", between, False
    yield "the same, copied", between, True


def loops(maker: Maker, scene: Scene, index: int) -> Case:
    scene, stride = round_trip(scene, index), maker.bundle.spec.temporal_stride
    frames = maker.options.loop_frames - (maker.options.loop_frames - 1) % stride
    yield "loop", maker.run(scene, index, image=maker.picture(scene), loop=True, frames=frames), False


CASES: dict[str, Callable[[Maker, Scene, int], Case]] = {
    "orders": orders,
    "keyframes": keyframes,
    "extension": extension,
    "loops": loops,
}


def measure(maker: Maker, console: Console) -> dict[str, Measured]:
    """By row."""
    options, found = maker.options, {WORLD: Measured(method="-")}
    for index, scene in enumerate(held_out(options.clips, options.frames, maker.size)):
        drawn = through_codec(maker.bundle, maker.drawn(scene, range(options.frames)))
        for case in options.cases:
            for number, (name, run, copied) in enumerate(CASES[case](maker, scene, index)):
                row = found.setdefault(name, Measured(method=run.method.order))
                row.add(maker.frames(run, copied=copied), borders_of(run), made_steps(run))
                if case == "orders" and number == 0:
                    found[WORLD].add(drawn, borders_of(run), made_steps(run))
        console.print(f"clip {index + 1}/{options.clips}", style="dim")
    return {name: row for name, row in found.items() if row.control}


# What is told ----------------------------------------------------------------------------------------


def quantile(clips: Sequence[Sequence[float]], share: float) -> Interval | None:
    """A quantile over all borders of all clips, its interval by resampling clips: those of one are alike."""
    values = np.array([clip for clip in clips if len(clip)], dtype=np.float64)
    if not values.size or np.isnan(values).all():
        return None

    def of(indices: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = values[indices.astype(int)]  # (R, clips, borders)
        return np.nanquantile(drawn.reshape(len(indices), -1), share, axis=1)

    return bootstrap(np.arange(len(values)), statistic=of, resamples=RESAMPLES)


def cell(found: Interval | None) -> str:
    return "-" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def table_of(results: dict[str, Measured], options: argparse.Namespace) -> Table:
    rows = []
    for name, row in results.items():
        control = [cell(quantile(row.control, share)) for share in SHARES]
        for kind, clips in row.seams.items():
            seams = [cell(quantile(clips, share)) for share in SHARES]
            shown = name if row.method in (name, "-") else f"{name} ({row.method})"
            rows.append((f"{shown}: {kind}", str(sum(map(len, clips))), *seams, *control))
    return Table(
        title=f"Seams, {options.clips} clips of {options.frames} frames",
        columns=("", "borders", "median", "95th", "control", "control, 95th"),
        rows=tuple(rows),
        notes=(
            "difference to the frame before, mean distance in Lab, over the median of its neighbours': 1 is "
            "no seam; median and 95th percentile [95 % bootstrap interval, clips resampled]",
            f"neighbours: up to {AROUND} on either side that are no borders; a median below {UNSEEN} counts "
            "as that",
            "control: the same at frames that are no borders, where both frames were made, in these clips",
            f"{WORLD}: the scenes themselves, drawn, through the codec, at the borders of the first method",
        ),
    )


def plot(path: Path, results: dict[str, Measured]) -> None:
    """Every border as a point beside the spread of its control."""
    from matplotlib.figure import Figure

    rows = [(name, kind) for name, row in results.items() for kind in row.seams]
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    scatter = np.random.default_rng(0)
    low_end, high_end = 0.5, 2.0
    for place, (name, kind) in enumerate(rows):
        control = np.concatenate([np.asarray(clip, float) for clip in results[name].control])
        seams = np.concatenate([np.asarray(clip, float) for clip in results[name].seams[kind]])
        low, middle, high = np.nanquantile(control, [0.05, 0.5, 0.95])
        axes.barh(place, high - low, left=low, height=0.7, color="#b9c4cc", lw=0)
        axes.plot([middle] * 2, [place - 0.35, place + 0.35], color="#66737d", lw=1.5)
        lanes = place + scatter.uniform(-0.22, 0.22, len(seams))
        axes.plot(seams, lanes, ".", ms=4, color="#c8552b", alpha=0.6, mew=0)
        axes.plot(np.nanmedian(seams), place, "|", ms=16, mew=2.5, color="#8f2f10")
        low_end, high_end = min(low_end, low), max(high_end, high, np.nanmax(seams))
    axes.set_yticks(range(len(rows)), [f"{name}: {kind}" for name, kind in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low_end <= tick <= high_end]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="#33383d", lw=0.8)
    axes.set_xlabel("difference over its neighbours' median; grey: control, 5th to 95th percentile")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    if options.plot is not None:
        check_file(options.plot, (".png",))
    if options.clips < 1 or options.frames < 7:
        raise InputError(f"{options.clips} clips of {options.frames} frames: give 1 or more, of 7 or more")
    device = pick_device(options.device)
    bundle = load_bundle(options.model, device, pick_dtype("auto", device))
    options.methods = options.methods or [name for name in METHODS if name in bundle.spec.methods]
    where = machine(str(device))
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as name:
        results = measure(Maker(bundle, options, Path(name)), console)
    if options.plot is not None:
        plot(options.plot, results)
    return Report(
        name="Seams",
        command=command,
        machine=where,
        tables=(table_of(results, options),),
        data={
            "clips": options.clips,
            "frames": options.frames,
            "around": AROUND,
            "unseen": UNSEEN,
            "rows": {
                name: {"order": row.method, "seams": row.seams, "control": row.control}
                for name, row in results.items()
            },
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="name or folder")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--frames", type=int, default=49, help="of each clip that is no loop")
    parser.add_argument("--loop-frames", type=int, default=55, help="in which a shape comes round once")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--methods", nargs="+", help="of the orders; those of the model by default")
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path, help=".png")
    return carry_out("seams", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
