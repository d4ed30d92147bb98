"""The values of the page's form, by name: what they ask for, and what was asked for or made before as such.

Names: image, prompt, negative_prompt, model, method, size, seconds, seed, steps, guidance, loop, from_clip,
end_image; of each row n: at_n and then_n of the storyboard, key_at_n and key_image_n, lora_n and weight_n.
Pictures and clips are paths. None, or nothing in a text, stands for the model's own choice.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from framepack.errors import InputError
from framepack.planning.prompts import read_prompt
from framepack.planning.script import Cue, Script
from framepack.serving.asked import Asked
from framepack.serving.form import Received, told
from framepack.serving.schemas import KeyframeIn, LoraIn, VideoIn
from framepack.serving.service import Service

SCENES, KEYFRAMES, LORAS = 8, 6, 3
"""Rows of each kind that the form has."""
FILES = ("image", "end_image", "from_clip", *(f"key_image_{row}" for row in range(KEYFRAMES)))
AUTO = "auto"
PLAIN = ("model", "negative_prompt", "size", "seconds", "seed", "steps", "guidance", "loop", "method")
"""Fields that have their names in a request too."""


@contextmanager
def received(values: Mapping[str, Any]) -> Iterator[Received]:
    """The form as if it had been sent to the API, for as long as the block runs.

    Raises:
        InputError: a value that no request may have.
    """
    uploads: dict[str, Path] = {}
    for name in ("image", "end_image", "from_clip"):
        if values.get(name):
            uploads[name] = Path(values[name])
    keyframes = []
    for row in range(KEYFRAMES):
        if values.get(f"key_image_{row}"):
            if values.get(f"key_at_{row}") is None:
                raise InputError(f"key picture {row + 1} has no time: give the second at which it is shown")
            uploads[f"key-{row}"] = Path(values[f"key_image_{row}"])
            keyframes.append({"at": values[f"key_at_{row}"], "picture": f"key-{row}"})
    loras = [
        {"name": values[f"lora_{row}"], "weight": values[f"weight_{row}"]}
        for row in range(LORAS)
        if values.get(f"lora_{row}")
    ]
    plain = {name: values[name] for name in PLAIN if values.get(name) not in (None, "")}
    if plain.get("method") == AUTO:
        del plain["method"]
    try:
        video = VideoIn.model_validate(
            {
                **plain,
                "prompt": written(values),
                "keyframes": [KeyframeIn.model_validate(each) for each in keyframes],
                "loras": [LoraIn.model_validate(each) for each in loras],
            }
        )
    except ValidationError as error:
        raise InputError(told(error)) from error
    with TemporaryDirectory(prefix="framepack-form-") as name:
        folder = Path(name)
        if "from_clip" in uploads:  # it is moved away, and the form may be used again
            uploads["from_clip"] = _linked(uploads["from_clip"], folder / "clip")
        yield Received(video, folder, uploads)


def _linked(file: Path, place: Path) -> Path:
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
    return place


def written(values: Mapping[str, Any]) -> str:
    """The prompt with the rows of the storyboard after it, as `planning.prompts` writes them.

    Raises:
        InputError: a row without its time; cues that do not go together.
    """
    prompt = values.get("prompt") or ""
    cues = []
    for row in range(SCENES):
        then, at = (values.get(f"then_{row}") or "").strip(), values.get(f"at_{row}")
        if not then:
            continue
        if at is None:
            raise InputError(f"scene {row + 1} has no time: give the second from which it holds")
        cues.append(Cue(at=at, prompt=then))
    if not cues:
        return prompt
    first = read_prompt(prompt)
    if not isinstance(first, Script):
        raise InputError("prompts by section and a storyboard were both given: give one")
    return str(Script((*first.cues, *cues)))


def told_by(prompt: str) -> dict[str, Any]:
    """The values that a prompt comes to: rows of the storyboard where they can hold it, else the text."""
    empty: dict[str, Any] = {f"at_{row}": None for row in range(SCENES)}
    empty |= {f"then_{row}": "" for row in range(SCENES)}
    script = read_prompt(prompt)
    if not isinstance(script, Script):
        return empty | {"prompt": prompt}
    first, *later = script.cues
    if len(later) > SCENES or any(cue.until is not None or cue.blend for cue in script.cues):
        return empty | {"prompt": prompt}
    rows: dict[str, Any] = {"prompt": prompt if not later else first.prompt}
    for row, cue in enumerate(later):
        rows |= {f"at_{row}": cue.at, f"then_{row}": cue.prompt}
    return empty | rows


def of_asked(asked: Asked, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a video that was asked for.

    Args:
        folder: the job's, with its files. about: what its model offers.
    """
    own = {name: getattr(asked, name) for name in PLAIN}
    own |= {name: about[name] for name in ("steps", "guidance") if own[name] is None}
    own["method"] = own["method"] or AUTO
    values = own | told_by(asked.prompt) | _empty_rows()
    if own["seconds"] is None and asked.frames is not None:
        values["seconds"] = round(asked.frames / about["fps"], 3)
    values["image"] = _path(folder, asked.image)
    values["from_clip"] = _path(folder, asked.from_clip)
    rows = 0
    for at, file in asked.keyframes:
        if at is None:
            values["end_image"] = _path(folder, file)
        elif rows < KEYFRAMES:
            values |= {f"key_at_{rows}": at, f"key_image_{rows}": _path(folder, file)}
            rows += 1
    for row, (name, weight) in enumerate(asked.loras[:LORAS]):
        values |= {f"lora_{row}": name, f"weight_{row}": weight}
    return values


def of_settings(settings: Mapping[str, Any], service: Service) -> dict[str, Any]:
    """The values of a video that was made, from what is told in its file (`generation.places.settings`).

    Only what the form has is taken over; pictures, clips and LoRAs are known by their digests alone.

    Raises:
        InputError: it holds nothing that could be taken over.
    """
    config = settings.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("prompt"), str):
        raise InputError("no settings of framepack")
    offers = list(service.config.offers)
    model = settings.get("model")
    values: dict[str, Any] = {"model": model if model in offers else offers[0]}
    values |= {"image": None, "from_clip": None} | _empty_rows()
    try:
        values |= told_by(config["prompt"])
        frames, fps = config["frames"], config["fps"]
        values["seconds"] = round(float(frames) / float(fps), 3)
        values["size"] = f"{int(config['width'])}x{int(config['height'])}"
        values |= {"seed": int(config["seed"]), "steps": int(config["steps"])}
        values |= {"guidance": float(config["guidance"]), "loop": bool(config.get("loop", False))}
        values["negative_prompt"] = str(config.get("negative_prompt", ""))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError("no settings of framepack") from error
    values["method"] = service.method_named(values["model"], config.get("method")) or AUTO
    return values


def needs_files(settings: Mapping[str, Any]) -> bool:
    """Whether the video was made with pictures, clips or LoRAs, which its settings do not hold."""
    config = settings.get("config", {})
    return bool(config.get("image") or config.get("given") or config.get("loras"))


def _empty_rows() -> dict[str, Any]:
    values: dict[str, Any] = {"end_image": None}
    for row in range(KEYFRAMES):
        values |= {f"key_at_{row}": None, f"key_image_{row}": None}
    for row in range(LORAS):
        values |= {f"lora_{row}": None, f"weight_{row}": 1.0}
    return values


def _path(folder: Path, name: str | None) -> str | None:
    return None if name is None or not (folder / name).is_file() else str(folder / name)
