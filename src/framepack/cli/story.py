"""What ``--storyboard`` says, put together with the rest of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framepack.errors import InputError


def with_storyboard(storyboard: Path | None, **given: Any) -> dict[str, Any]:
    """Fields of a ``GenerateRequest``: those of the storyboard, and over them what was ``given`` beside it.

    None stands for what was not given; it is left out, keyframes come together.

    Raises:
        InputError: a storyboard that cannot be read; a prompt or a length beside it, which it says itself.
    """
    from framepack.generation.given import Keyframe
    from framepack.planning.storyboard import read_storyboard

    asked = {name: value for name, value in given.items() if value is not None}
    if storyboard is None:
        return asked
    story = read_storyboard(storyboard)
    for name in ("prompt", "seconds", "frames"):
        if name in asked:
            says = "prompts" if name == "prompt" else f"length, {story.seconds:g} s"
            raise InputError(
                f"--{name} beside --storyboard: '{storyboard}' says the {says}; leave --{name} out"
            )
    told = {
        "image": story.start,
        "method": story.method,
        "seed": story.seed,
        "negative_prompt": story.negative_prompt,
    }
    beside = asked.get("keyframes", ())
    keyframes = [Keyframe(at=at, picture=picture) for at, picture in story.keyframes]
    if story.end_image is not None and all(keyframe.at is not None for keyframe in beside):
        keyframes.append(Keyframe(picture=story.end_image))
    return {
        **{name: value for name, value in told.items() if value is not None},
        **asked,
        "prompt": story.script,
        "seconds": story.seconds,
        "keyframes": (*keyframes, *beside),
    }
