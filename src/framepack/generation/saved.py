"""A request, kept in the folder of its run, so that the folder alone is enough to go on with it."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from framepack.errors import InputError
from framepack.generation.given import Keyframe
from framepack.generation.manifest import unwritable, write_file
from framepack.generation.request import GenerateRequest
from framepack.models.lora import Lora
from framepack.planning.script import Script
from framepack.video.images import picture_digest

FILE = "request.json"
_HERE = ("workdir", "overwrite")
"""What is not kept: it is of one call, or of where the folder lies."""


def keep_request(request: GenerateRequest, folder: Path) -> None:
    """Write ``request.json``; pictures that are no files are put beside it.

    Raises:
        OutputError: it cannot be written.
    """
    said = {
        field.name: _plain(getattr(request, field.name), folder)
        for field in fields(request)
        if field.name not in _HERE
    }
    said |= {"model": _local(request.model), "parts": [*map(_local, request.parts)]}
    text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    file = folder / FILE
    try:
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_file(file, text.encode())
    except OSError as error:
        raise unwritable(file, error) from error


def _local(name: str) -> str:
    """The name of a model or part, from anywhere: a path is made absolute, a hub id is none."""
    return str(Path(name).absolute()) if Path(name).exists() and name != "bundled" else name


def _plain(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Image):
        file = folder / f"given-{picture_digest(value)[:12]}.png"
        if not file.is_file():
            made = io.BytesIO()
            value.save(made, "PNG")
            write_file(file, made.getvalue())
        return str(file.absolute())
    if isinstance(value, Script):
        return {"cues": value.to_json()}
    if isinstance(value, Lora):
        return {"path": str(value.path.absolute()), "weight": value.weight}
    if isinstance(value, Keyframe):
        return {"at": value.at, "picture": _plain(value.picture, folder)}
    if isinstance(value, tuple):
        return [_plain(each, folder) for each in value]
    return value


def load_request(folder: Path) -> GenerateRequest:
    """The request that a run folder was made by.

    Raises:
        InputError: the folder holds none, or one that cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        raise InputError(f"'{folder}' holds no {FILE}: give the work folder of a run by `framepack generate`")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        for name in ("image", "from_clip", "to_clip", "out"):
            said[name] = None if said[name] is None else Path(said[name])
        said["parts"] = tuple(said["parts"])
        said["loras"] = tuple(Lora(Path(each["path"]), each["weight"]) for each in said["loras"])
        said["keyframes"] = tuple(
            Keyframe(at=each["at"], picture=Path(each["picture"])) for each in said["keyframes"]
        )
        if isinstance(said["prompt"], dict):
            said["prompt"] = Script.from_json(said["prompt"]["cues"])
        request = GenerateRequest(**said)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{file}' cannot be read ({error}): run the first command again") from error
    return replace(request, workdir=folder)
