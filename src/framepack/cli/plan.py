"""``framepack plan``: what would be made in which order, from what; no weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framepack.cli import options
from framepack.cli.options import WHERE

if TYPE_CHECKING:
    from framepack.generation.selection import Selection
    from framepack.models.spec import ModelSpec


def plan(
    prompt: options.Prompt = None,
    storyboard: options.Storyboard = None,
    image: options.Image = None,
    end_image: options.EndImage = None,
    keyframe: options.Keyframes = None,
    from_clip: options.FromClip = None,
    to_clip: options.ToClip = None,
    loop: options.Loop = False,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    size: options.Size = "auto",
    method: options.Method = None,
    schedule: options.Schedule = None,
    untrained: options.Untrained = False,
    model: options.Model = "bundled",
    png: Annotated[
        Path | None,
        typer.Option("--png", help="Also draw it as a picture.", show_default=False, rich_help_panel=WHERE),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Show the sections of a video in the order they would be made, and what each of them sees.

    Takes the bundled model, a folder, or one of the published sizes: base, lite, extended.
    """
    import json

    from framepack.cli import plan_view
    from framepack.cli.outputs import check_png
    from framepack.cli.story import with_storyboard
    from framepack.generation.hashing import hash_json
    from framepack.generation.request import GenerateRequest
    from framepack.generation.selection import select
    from framepack.packing.schedule import Level

    spec = find_spec(model)
    asked = with_storyboard(
        storyboard,
        prompt=prompt,
        image=image,
        keyframes=options.keyframes(keyframe, end_image),
        seconds=seconds,
        frames=frames,
        method=method,
    )
    request = GenerateRequest(
        **asked,
        from_clip=from_clip,
        to_clip=to_clip,
        loop=loop,
        size=size,
        schedule=schedule,
        untrained=untrained,
        model=model,
    )
    chosen = select(request, spec)
    title = f"{chosen.method.order}  {chosen.method}"
    told = chosen.plan.to_json(chosen.grid, spec.base_kernel)
    facts = describe(chosen, spec, told)
    if png is not None:
        source = f"plan {hash_json([spec.name, told], 12)}"
        check_png(png, source, image=image, overwrite=overwrite)
        new = [
            sum(Level(len(span), spec.base_kernel).tokens(chosen.grid) for span in s.spans)
            for s in chosen.plan.sections
        ]
        tokens = [(s.tokens(chosen.grid), own) for s, own in zip(chosen.plan.sections, new, strict=True)]
        plan_view.draw_png(chosen.plan, title, facts, tokens, png, source)
    if as_json:
        typer.echo(json.dumps(told | prompts_json(chosen)))
    else:
        from rich.console import Console

        plan_view.print_plan(chosen.plan, title, facts, Console(highlight=False), chosen.script)


def prompts_json(chosen: Selection) -> dict[str, object]:
    """Where the prompt changes, and each section's prompts with their weights; nothing without a prompt."""
    from framepack.cli.plan_view import changes

    script, plan = chosen.script, chosen.plan
    if not any(script.prompts):
        return {}
    mixes = [script.mix(section.spans[0], plan.timeline) for section in plan.sections]
    return {
        "prompts": [
            {"at": turn.at, "switches_at": begins, "blend": turn.blend, "prompt": turn.prompt}
            for turn, begins in changes(plan, script)
        ],
        "sections": [
            section.to_json()
            | {"prompts": [{"prompt": text, "weight": round(weight, 4)} for text, weight in mix]}
            for section, mix in zip(plan.sections, mixes, strict=True)
        ],
    }


def find_spec(name: str) -> ModelSpec:
    """The numbers of a model to plan for: one of the published sizes, or one that can be loaded.

    Raises:
        UnknownNameError: neither. ModelError: a folder that cannot be read.
    """
    from framepack.models.variants import VARIANTS

    if name in VARIANTS:
        return VARIANTS[name].spec()
    from framepack.models.source import resolve_model

    return resolve_model(name, known=tuple(VARIANTS)).spec


def describe(chosen: Selection, spec: ModelSpec, told: dict) -> str:
    """One line of what the plan comes to."""
    timeline = chosen.timeline
    limit = told["limit_tokens"]
    bound = f"at most {limit:,} for any length" if limit is not None else "without bound"
    return (
        f"{spec.name}, {chosen.size[1]} x {chosen.size[0]}: {timeline.frames} frames at {timeline.fps:g} fps "
        f"({timeline.seconds:.2f} s) in {len(chosen.plan.sections)} sections, "
        f"{told['context_tokens']:,} tokens of context, {bound}"
    )
