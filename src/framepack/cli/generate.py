"""``framepack generate``: make a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.cli import options
from framepack.cli.options import HOW, WHAT, WHERE
from framepack.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from framepack.generation.events import Finished

SHEET_FRAMES, SHEET_COLUMNS = 15, 5


def generate(
    prompt: options.Prompt = None,
    storyboard: options.Storyboard = None,
    image: options.Image = None,
    end_image: options.EndImage = None,
    keyframe: options.Keyframes = None,
    from_clip: options.FromClip = None,
    to_clip: options.ToClip = None,
    copy_clips: options.CopyClips = False,
    loop: options.Loop = False,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    size: options.Size = "auto",
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            "--negative-prompt", help="What must not be seen.", show_default=False, rich_help_panel=WHAT
        ),
    ] = None,
    method: options.Method = None,
    schedule: options.Schedule = None,
    untrained: options.Untrained = False,
    model: options.Model = "bundled",
    parts: Annotated[
        list[str] | None,
        typer.Option(
            "--parts",
            help="Folder or hub id of what the model comes without, such as its text encoders; repeatable.",
            metavar="DIR|HUB-ID",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            help="LoRA file with its weight, 1 if left out; repeatable.",
            metavar="FILE[:WEIGHT]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the noise.", show_default="0", rich_help_panel=HOW)
    ] = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    embedded_guidance: Annotated[
        float | None,
        typer.Option(
            "--embedded-guidance",
            help="Strength of distilled guidance, for models that take it.",
            show_default="the model's",
            rich_help_panel=HOW,
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option("--solver", help="euler or unipc.", show_default="the model's", rich_help_panel=HOW),
    ] = None,
    step_cache: Annotated[
        str | None,
        typer.Option(
            "--step-cache",
            help="Faster, not the same: steps reuse earlier ones. first-block, mag or taylorseer.",
            metavar="NAME[=VALUE]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the model's blocks first, for GPUs.", rich_help_panel=HOW),
    ] = False,
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            help="One of diffusers' attention backends.",
            show_default="PyTorch's own",
            rich_help_panel=HOW,
        ),
    ] = None,
    devices: Annotated[
        int,
        typer.Option("--devices", help="How many devices make each section together.", rich_help_panel=HOW),
    ] = 1,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...", rich_help_panel=HOW)
    ] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.", rich_help_panel=HOW)
    ] = "auto",
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            help="How the model is fitted into memory: full, auto, low, models, layers, split, fp8 ...",
            rich_help_panel=HOW,
        ),
    ] = "full",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The video, an .mp4.",
            show_default="outputs/JOB.mp4",
            rich_help_panel=WHERE,
        ),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(
            "--workdir",
            help="Folder of finished sections, for resuming.",
            show_default="beside the video",
            rich_help_panel=WHERE,
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            help="Also write a contact sheet of the video, a .png.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make a video from a picture and a prompt, or from a prompt alone.

    The same command again resumes where it was stopped. A finished one says so and does nothing.
    """
    from framepack.cli.outputs import check_png, save_png
    from framepack.cli.progress import Progress
    from framepack.cli.story import with_storyboard
    from framepack.generation.request import GenerateRequest
    from framepack.models.lora import Lora

    if prompt is None and storyboard is None:
        raise InputError("nothing is said of what happens: give --prompt or --storyboard")
    asked = with_storyboard(
        storyboard,
        prompt=prompt,
        negative_prompt=negative_prompt,
        image=image,
        keyframes=options.keyframes(keyframe, end_image),
        seconds=seconds,
        frames=frames,
        method=method,
        seed=seed,
    )
    request = GenerateRequest(
        **asked,
        from_clip=from_clip,
        to_clip=to_clip,
        copy_clips=copy_clips,
        loop=loop,
        size=size,
        schedule=schedule,
        untrained=untrained,
        model=model,
        parts=tuple(parts or ()),
        loras=tuple(Lora.parse(text) for text in lora or ()),
        steps=steps,
        guidance=guidance,
        embedded_guidance=embedded_guidance,
        solver=solver,
        step_cache=step_cache,
        compile=compile,
        attention=attention,
        devices=devices,
        device=device,
        dtype=dtype,
        memory=memory,
        out=out,
        workdir=workdir,
        overwrite=overwrite,
    )
    with Progress() as progress:
        with progress.busy("loading the model"):
            from framepack.generation.prepare import prepare  # brings PyTorch, which takes seconds

            run = prepare(request)
        source = f"job {run.config.job}"
        if sheet is not None:
            check_png(sheet, source, image=asked.get("image"), overwrite=overwrite)
        for warning in run.warnings:
            progress.warn(warning)

        finished = progress.follow(run)
    if sheet is not None:
        save_png(sheet_of(finished.out, title=run.config.prompt), sheet, source)
    progress.done(finished, sheet)
    if as_json:
        typer.echo(json.dumps(summary(finished)))


def summary(finished: Finished) -> dict[str, object]:
    """The line that ``--json`` prints."""
    return {
        "out": str(finished.out),
        "config": str(finished.config),
        "frames": finished.frames,
        "fps": finished.fps,
        "sections": finished.sections,
        "context_tokens": finished.context_tokens,
        "cached": finished.cached,
        "seconds": {stage: round(spent, 3) for stage, spent in finished.seconds.items()},
        "peak_memory": finished.peak_memory,
    }


def sheet_of(video: Path, title: str) -> Image:
    """Frames of a video file laid out on a sheet; only those shown are held in memory."""
    from framepack.video.io import read_video
    from framepack.video.sheet import contact_sheet, spread

    count = sum(1 for _ in read_video(video).frames)
    wanted = spread(count, SHEET_FRAMES)
    opened = read_video(video)
    shown = [frame for index, frame in enumerate(opened.frames) if index in set(wanted)]
    if not shown:
        raise InputError(f"video '{video}' has no frames: make it again with --overwrite")
    labels = [f"{index / opened.fps:.2f} s" for index in wanted]
    return contact_sheet(shown, SHEET_COLUMNS, labels, title=title)
