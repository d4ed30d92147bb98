"""``framepack live``: video without end, to a file or a pipe, led by what is typed."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from framepack.cli import options
from framepack.cli.options import HOW, WHERE
from framepack.errors import FramePackError, InputError

if TYPE_CHECKING:
    from framepack.cli.progress import Progress
    from framepack.generation.live import Live


def live(
    prompt: options.Prompt = None,
    image: options.Image = None,
    from_clip: options.FromClip = None,
    size: options.Size = "auto",
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Stop after so much video.", show_default="when interrupted", min=0),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="As fast as it can, and not as fast as it is seen.")
    ] = False,
    method: options.Method = None,
    untrained: options.Untrained = False,
    model: options.Model = "bundled",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.", rich_help_panel=HOW)] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", help="Denoising steps per section.", show_default="the model's", rich_help_panel=HOW
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            help="Strength of the prompt; 1 is none, and twice as fast.",
            show_default="the model's",
            rich_help_panel=HOW,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...", rich_help_panel=HOW)
    ] = "auto",
    out: Annotated[
        str,
        typer.Option(
            "--out",
            help="The video, an .mp4 that can be played while it grows; - for standard output.",
            rich_help_panel=WHERE,
        ),
    ] = "outputs/live.mp4",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make a video that does not end until it is interrupted, in memory that does not grow.

    A line that is typed while it runs is the prompt from the next section on. To watch it:
    framepack live --prompt "..." --out - | ffplay -
    """
    from framepack.cli.progress import Progress
    from framepack.generation.request import GenerateRequest

    if prompt is None:
        raise InputError("nothing is said of what happens: give --prompt")
    piped = out == "-"
    if piped and as_json:
        raise InputError("--out - and --json both want standard output: leave one out")
    request = GenerateRequest(
        prompt=prompt,
        image=image,
        from_clip=from_clip,
        size=size,
        method=method,
        untrained=untrained,
        model=model,
        seed=seed,
        steps=steps,
        guidance=guidance,
        device=device,
    )
    place: Path | BinaryIO = sys.stdout.buffer
    if not piped:
        from framepack.video.io import check_output

        place = check_output(Path(out), overwrite=overwrite)
    with Progress() as progress:
        with progress.busy("loading the model"):
            from framepack.generation.live import Live
            from framepack.models.device import pick_device, pick_dtype
            from framepack.models.loading import load_bundle
            from framepack.models.source import resolve_model

            device_ = pick_device(device)
            video = Live(request, load_bundle(resolve_model(model), device_, pick_dtype("auto", device_)))
        for warning in video.warnings:
            progress.warn(warning)
        told = _show(video, place, progress, seconds, fast=fast)
    if as_json:
        typer.echo(json.dumps({"out": out, **told}))


def _show(
    video: Live, place: Path | BinaryIO, progress: Progress, seconds: float | None, *, fast: bool
) -> dict[str, object]:
    """Write sections as they come, until it is enough or somebody interrupts; what came of it."""
    from framepack.generation.clock import resident_memory
    from framepack.video.growing import GrowingVideo

    threading.Thread(target=_listen, args=(video, progress), daemon=True).start()
    begun, frames, spent, memory = time.perf_counter(), 0, 0.0, [0, 0]
    with GrowingVideo(place, video.fps, {"prompt": video.config.prompt}) as growing:
        try:
            for section in video.sections():
                if seconds is not None:
                    section_frames = section.frames[: max(0, round(seconds * video.fps) - frames)]
                else:
                    section_frames = section.frames
                growing.append(section_frames)
                frames, spent = frames + len(section_frames), spent + section.seconds
                memory = [memory[0] or resident_memory(), resident_memory()]
                progress.live(section.index, frames, video.fps, frames / spent, memory[1], section.prompt)
                if seconds is not None and frames >= round(seconds * video.fps):
                    break
                ahead = frames / video.fps - (time.perf_counter() - begun)
                # What is ahead of being seen by a section could not follow a prompt that is typed now.
                if not fast and ahead > len(section.frames) / video.fps:
                    time.sleep(ahead - len(section.frames) / video.fps)
        except KeyboardInterrupt:
            pass
    return {
        "frames": frames,
        "fps": video.fps,
        "made_per_second": round(frames / spent, 3) if spent else None,
        "memory_first": memory[0],
        "memory_last": memory[1],
    }


def _listen(video: Live, progress: Progress) -> None:
    """Lines of standard input, each the prompt from then on."""
    for line in sys.stdin:
        if text := line.strip():
            try:
                video.prompt = text
            except FramePackError as error:
                progress.warn(str(error))
