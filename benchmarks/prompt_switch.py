"""Prompt switch: does the motion turn when the prompt does?

Held-out pictures of the procedural world, with a prompt that says left and from half-way on right. Each clip
is made as ``framepack generate`` makes it, the shape is followed in its pixels, and the frame at which its
motion turns is compared with the time asked for: it counts if they are at most one section apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from framepack.generation.pipeline import FramePackPipeline
from framepack.metrics.bootstrap import bootstrap
from framepack.metrics.motion import STILL, track
from framepack.planning.planners import tiles
from framepack.planning.script import Cue, Script
from framepack.planning.timeline import Timeline
from framepack.resources.machine import machine
from framepack.training.check import Pair, held_out_pairs, sentences
from shared.report import Report, Table, carry_out

BEFORE, AFTER = "left", "right"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What was found in one clip; frames count from 0, ``turned`` is None where the motion does not turn.

    turned: first frame that moved the new way.
    """

    asked: float
    turned: float | None

    @property
    def late(self) -> float | None:
        return None if self.turned is None else self.turned - self.asked

    def within(self, frames: int) -> bool:
        return self.late is not None and abs(self.late) <= frames


def turn_of(steps: NDArray[np.float64]) -> float | None:
    """The first frame that moved right, after frames that moved left; None where it is not so.

    The border that has most of the motion on its right side; where several have, the middle of them.

    Args:
        steps: (N - 1,) widths moved to the right from each frame to the next, NaN where that is not known.
    """
    signs = np.nan_to_num(np.clip(steps / STILL, -1, 1))
    before = -np.concatenate([[0.0], np.cumsum(signs)])
    agreement = before + (signs.sum() + before)  # left of each border to the left, right of it to the right
    best = np.flatnonzero(agreement >= agreement.max() - 1e-9)
    border = int(best[len(best) // 2])
    left, right = signs[:border], signs[border:]
    if not len(left) or not len(right) or left.mean() > -0.5 or right.mean() < 0.5:
        return None
    return float(best.mean()) + 1


def story(pair: Pair, index: int, at: float | None) -> Script:
    """The prompt of a clip; without ``at`` it stays as it begins."""
    said = [
        sentences([(*(w for w in pair.words if w != pair.direction), side)], index)[0]
        for side in (BEFORE, AFTER)
    ]
    cues = (Cue(at=0.0, prompt=said[0]), *(() if at is None else (Cue(at=at, prompt=said[1]),)))
    return Script(cues)


def measure(
    pipe: FramePackPipeline, pairs: Sequence[Pair], options: argparse.Namespace, method: str, *, turns: bool
) -> list[Clip]:
    """One clip for each pair."""
    asked = options.frames / 2
    clips = []
    for index, pair in enumerate(pairs):
        made = pipe(
            story(pair, index, asked / pipe.spec.fps if turns else None),
            Image.fromarray(pair.picture),
            num_frames=options.frames,
            method=method,
            untrained=True,
            seed=options.seed + index,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
        )
        frames = np.stack([np.asarray(frame) for frame in made.frames])
        clips.append(Clip(asked=asked, turned=turn_of(track(frames, pair.colour).steps()[:, 0])))
    return clips


def section_frames(pipe: FramePackPipeline, method: str) -> int:
    return pipe.spec.method(method, untrained=True).section_size * pipe.spec.temporal_stride


def grid_switch(pipe: FramePackPipeline, method: str, frames: int) -> int:
    """The frame at which the section grid puts the change."""
    spec, named = pipe.spec, pipe.spec.method(method, untrained=True)
    timeline = Timeline(frames=frames, fps=spec.fps, stride=spec.temporal_stride, known=(0,))
    script = Script((Cue(at=0.0, prompt=BEFORE), Cue(at=frames / 2 / spec.fps, prompt=AFTER)))
    span = script.switches(tiles(timeline, named), timeline)[1][1]
    return frames if span is None else timeline.frames_of(span.start).start


def share(clips: Sequence[Clip], frames: int) -> str:
    found = bootstrap([float(clip.within(frames)) for clip in clips])
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    pipe = FramePackPipeline.from_pretrained(options.model, device=options.device)
    where = machine(str(pipe.device))
    pairs = held_out_pairs(options.clips, pipe.spec.buckets[0], margin=0.4)
    rows, data = [], {}
    for method in options.methods:
        section = section_frames(pipe, method)
        clips = measure(pipe, pairs, options, method, turns=True)
        console.print(f"{method}: {len(clips)} clips", style="dim")
        control = measure(pipe, pairs, options, method, turns=False) if options.control else []
        late = [clip.late for clip in clips if clip.late is not None]
        rows.append(
            (
                method,
                share(clips, section),
                f"{len(late)}/{len(clips)}",
                f"{np.median(late):+.1f}" if late else "-",
                f"{grid_switch(pipe, method, options.frames) - options.frames / 2:+.1f}",
                share(control, section) if control else "-",
            )
        )
        data[method] = {
            "section_frames": section,
            "grid": grid_switch(pipe, method, options.frames),
            "clips": [{"asked": c.asked, "turned": c.turned, "within": c.within(section)} for c in clips],
            "control": [{"turned": c.turned, "within": c.within(section)} for c in control],
        }
    table = Table(
        title=f"Prompt switch, {options.clips} clips of {options.frames} frames",
        columns=("method", "within one section", "turned", "late, frames", "the grid, frames", "control"),
        rows=tuple(rows),
        notes=(
            f"{BEFORE} until frame {options.frames / 2:g}, then {AFTER}; share [95 % bootstrap interval]",
            "late: median of measured turn less time asked for; the grid: where sections switch less that",
            f"control: the same clips with {BEFORE} throughout, by the same measure; made with --control",
        ),
    )
    return Report(
        name="Prompt switch",
        command=command,
        machine=where,
        tables=(table,),
        data={"frames": options.frames, "methods": data},
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="name or folder")
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--frames", type=int, default=31, help="of each clip, the given one included")
    parser.add_argument("--methods", nargs="+", default=("inverted", "vanilla"))
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", action="store_true", help="also make every clip without a change")
    parser.add_argument("--device", default=None)
    return carry_out("prompt_switch", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
