"""``framepack live``: video without end, to a file or a pipe, led by what is typed."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framepack.cli import options
from framepack.cli.options import HOW, WHERE
from framepack.errors import FramePackError, InputError, OutputError

if TYPE_CHECKING:
    from framepack.cli.progress import Progress
    from framepack.generation.live import Live
    from framepack.video.growing import GrowingVideo


def live(
    prompt: options.Prompt = None,
    image: options.Image = None,
    from_clip: options.FromClip = None,
    size: options.Size = "auto",
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Stop after so much video.", show_default="when interrupted"),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="As fast as it can, and not as fast as it is seen.")
    ] = False,
    method: options.Method = None,
    untrained: options.Untrained = False,
    model: options.Model = "bundled",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.", rich_help_panel=HOW)] = 0,
    steps: options.Steps = None,
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

    A line that is typed while it runs is the prompt from the next section on. Ctrl-C ends it, and so does
    closing the player that it is piped to; the video is whole then. To watch it:
    framepack live --prompt "..." --out - | ffplay -
    """
    from framepack.cli.progress import Progress
    from framepack.generation.request import GenerateRequest
    from framepack.planning.timeline import Timeline

    if prompt is None:
        raise InputError("nothing is said of what happens: give --prompt")
    piped = out == "-"
    if piped and as_json:
        raise InputError("--out - and --json both want standard output: leave one out")
    if piped and sys.stdout.isatty():
        raise InputError("--out - would write a video to the terminal: pipe it, as in --out - | ffplay -")
    if seconds is not None:
        Timeline.from_seconds(seconds, fps=1, stride=1)  # refuses what is no length
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
    place = _checked(Path(out), from_clip, overwrite=overwrite) if not piped else None
    with Progress() as progress:
        with progress.busy("loading the model"):
            from framepack.generation.live import Live
            from framepack.models.device import pick_device, pick_dtype
            from framepack.models.loading import load_bundle
            from framepack.models.source import resolve_model
            from framepack.video.growing import GrowingVideo

            device_ = pick_device(device)
            video = Live(request, load_bundle(resolve_model(model), device_, pick_dtype("auto", device_)))
        for warning in video.warnings:
            progress.warn(warning)
        wanted = None if seconds is None else Timeline.from_seconds(seconds, fps=video.fps, stride=1).frames
        # Unbuffered: nothing is left that Python would write at its end, to a player that is gone.
        stdout: Any = sys.stdout.buffer
        target = place or getattr(stdout, "raw", stdout)
        told = {"prompt": video.config.prompt}
        with GrowingVideo(target, video.fps, told, overwrite=overwrite) as growing:
            threading.Thread(target=_listen, args=(video, progress), daemon=True).start()
            try:
                shown = _show(video, growing, progress, wanted, fast=fast)
            finally:
                if place is not None and not growing.frames:
                    place.unlink()
        progress.ended(place, growing.frames, video.fps)
    if as_json:
        typer.echo(json.dumps({"out": out, **shown}))


def _checked(place: Path, from_clip: Path | None, *, overwrite: bool) -> Path:
    """A place that can be written. Raises OutputError: it can't, or it is what is read."""
    from framepack.video.io import check_output

    check_output(place, overwrite=overwrite)
    if from_clip is not None and place.exists() and from_clip.exists() and place.samefile(from_clip):
        raise OutputError(f"output '{place}' is the clip that --from-clip names: choose another name")
    return place


def _show(
    video: Live, growing: GrowingVideo, progress: Progress, wanted: int | None, *, fast: bool
) -> dict[str, object]:
    """Write sections as they come until it is enough, somebody interrupts or the reader is gone.

    Args:
        wanted: frames.

    Returns:
        What came of it.

    Raises:
        KeyboardInterrupt: before there was anything to be seen.
    """
    from framepack.generation.clock import resident_memory

    begun, spent, made, memory = time.perf_counter(), 0.0, 0, [0, 0]
    try:
        for section in video.sections():
            with _undisturbed():
                growing.append(section.frames[: None if wanted is None else wanted - growing.frames])
                made, spent = made + len(section.frames), spent + section.seconds
                memory = [memory[0] or resident_memory(), resident_memory()]
                frames, fps = growing.frames, video.fps
                progress.live(section.index, frames, fps, made / spent, memory[1], section.prompt)
            if frames == wanted:
                break
            ahead = frames / fps - (time.perf_counter() - begun)
            # What is ahead of being seen by a section could not follow a prompt that is typed now.
            if not fast and ahead > len(section.frames) / fps:
                time.sleep(ahead - len(section.frames) / fps)
    except KeyboardInterrupt:
        if not growing.frames:
            raise
    except OutputError as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            raise
    return {
        "frames": growing.frames,
        "fps": video.fps,
        "made_per_second": round(made / spent, 3) if spent else None,
        "memory_first": memory[0],
        "memory_last": memory[1],
    }


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let an interrupt wait for the end of the block, so that what is written is whole; not a second one."""
    asked = False

    def wait(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _listen(video: Live, progress: Progress) -> None:
    """Lines of standard input, each the prompt from then on."""
    for line in _typed():
        if text := line.decode(errors="surrogateescape").strip():
            try:
                video.prompt = text
            except FramePackError as error:
                progress.warn(str(error))


def _typed() -> io.FileIO | tuple[()]:
    """Standard input without Python's lock on it, which would keep the process from ending."""
    try:
        return io.FileIO(sys.stdin.fileno(), closefd=False)
    except (AttributeError, OSError, ValueError):  # there is none, or a stand-in
        return ()
