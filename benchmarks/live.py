"""Live video: is it made as fast as it is seen, how long until a new prompt shows, and does memory stay.

Runs as ``framepack live`` does: a section is begun when less than one is ready ahead of what is being seen.
A frame is seen at its time after the first one, or when it is there, if that is later.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from framepack.generation.clock import resident_memory
from framepack.generation.live import Live
from framepack.generation.request import GenerateRequest
from framepack.models.device import pick_device, pick_dtype
from framepack.models.loading import load_bundle
from framepack.resources.machine import machine
from framepack.video.growing import GrowingVideo
from shared.report import Report, Table, carry_out

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMPTS = ("a red heart moves right", "a red heart moves left")
WARM = 20
"""Sections before memory is taken as settled."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One section: when its first frame was seen, seconds it took, its frames, bytes of memory after it."""

    prompt: str
    seen: float
    made: float
    frames: int
    resident: int


def watch(
    video: Live, seconds: float, every: float, path: Path, console: Console, seed: int = 0
) -> tuple[list[Shown], list[float]]:
    """So many seconds of it; and the delay of each change of its prompt, one about ``every`` so many."""
    found: list[Shown] = []
    asked: list[tuple[float, str]] = []
    over = threading.Event()
    begun = time.perf_counter()

    def ask() -> None:
        """At any moment of a section, as somebody who types would."""
        dice = random.Random(seed)
        for number in itertools.count(1):
            if over.wait(every * dice.uniform(0.7, 1.3)):
                return
            video.prompt = PROMPTS[number % len(PROMPTS)]
            asked.append((time.perf_counter() - begun, video.prompt))

    start, frames = 0.0, 0
    thread = threading.Thread(target=ask, daemon=True)
    with GrowingVideo(path, video.fps) as growing:
        for section in video.sections():
            growing.append(section.frames)
            now = time.perf_counter() - begun
            if not found:
                start = now
                thread.start()
            seen = max(now, start + frames / video.fps)
            start = seen - frames / video.fps  # what comes late delays all that follows
            count = len(section.frames)
            frames += count
            held = resident_memory()
            found.append(
                Shown(prompt=section.prompt, seen=seen, made=section.seconds, frames=count, resident=held)
            )
            if len(found) % 50 == 0:
                console.print(f"{frames / video.fps:.0f} s of video in {now:.0f} s", style="dim")
            if now >= seconds:
                break
            ahead = start + frames / video.fps - (time.perf_counter() - begun)
            time.sleep(max(0.0, ahead - count / video.fps))
    over.set()
    return found, delays(found, asked)


def delays(found: Sequence[Shown], asked: Sequence[tuple[float, str]]) -> list[float]:
    """Seconds from asking for each prompt to its first frame; one that another replaced first is left out."""
    told = []
    for number, (when, prompt) in enumerate(asked):
        later = asked[number + 1][0] if number + 1 < len(asked) else float("inf")
        shown = next((each.seen for each in found if each.prompt == prompt and each.seen > when), None)
        if shown is not None and shown < later:
            told.append(shown - when)
    return told


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    device = pick_device(options.device)
    where = machine(str(device))
    bundle = load_bundle(options.model, device, pick_dtype("auto", device))
    request = GenerateRequest(
        prompt=PROMPTS[0],
        image=EXAMPLES / "demo.png",
        method=options.method,
        steps=options.steps,
        guidance=options.guidance,
    )
    video = Live(request, bundle)
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as folder:
        found, late = watch(
            video, options.minutes * 60, options.every, Path(folder) / "live.mp4", console, options.seed
        )
    made, frames = np.array([s.made for s in found]), np.array([s.frames for s in found])
    speed = float(frames.sum() / made.sum())
    stalls = [s.seen - before.seen - before.frames / video.fps for before, s in itertools.pairwise(found)]
    settled = found[min(WARM, len(found) - 1)].resident
    rows = (
        ("frames made a second", f"{speed:.2f}", f"the model's own rate is {video.fps:g}"),
        ("sections that came late", f"{sum(stall > 0.01 for stall in stalls)} of {len(stalls)}", ""),
        ("waited for them, in all", f"{sum(max(stall, 0) for stall in stalls):.2f} s", ""),
        (
            "from a new prompt to its first frame",
            f"{np.median(late):.2f} s" if late else "-",
            f"median of {len(late)}, longest {max(late):.2f} s" if late else "no change was asked for",
        ),
        ("a section's length", f"{frames[-1] / video.fps:.2f} s", ""),
        ("memory, settled", f"{settled / 2**20:.0f} MiB", f"after {min(WARM, len(found) - 1)} sections"),
        ("memory, at the end", f"{found[-1].resident / 2**20:.0f} MiB", f"after {len(found)} sections"),
    )
    table = Table(
        title=f"{frames.sum() / video.fps:.0f} s of video, seen as it was made",
        columns=("what", "", "beside it"),
        rows=rows,
        notes=("frames made a second: over the time that making took, decoding and without waiting",),
    )
    verdict = "in real time" if speed >= video.fps else "slower than real time"
    return Report(
        name="Live video",
        command=command,
        machine=where,
        tables=(table,),
        findings=(f"{speed / video.fps:.2f} x the model's own rate: {verdict}",),
        data={"delays": late, "sections": [asdict(each) for each in found], "fps": video.fps},
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="name or folder")
    parser.add_argument("--minutes", type=float, default=2.0, help="to watch it for")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two prompts, about")
    parser.add_argument("--method", help="the model's own by default")
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--guidance", type=float, help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which prompts change")
    parser.add_argument("--device", default="auto")
    return carry_out("live", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())
