"""What a client sends to have a video made: JSON, or a form with files beside its fields.

Files are written to a folder of their own as they come, and looked at there: pictures become PNGs of their
pixels alone; clips are left to the worker, and are only known to be MP4s by their first bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from framepack.errors import InputError
from framepack.serving.asked import Asked
from framepack.serving.schemas import VideoIn
from framepack.serving.service import NoRoom, Service

PICTURES = ("input_reference", "image", "end_image")
CLIPS = ("from_clip", "to_clip")
JSON_FIELDS = ("keyframes", "loras")
EXTRA = "extra"
DATA_URL = re.compile(r"data:image/[a-z+.-]{1,20};base64,")
MAX_FILES = 70
MAX_FIELDS = 100
"""Fields of a form at most, files apart."""
MAX_FIELD = 200_000
"""Bytes of one; a prompt and 64 keyframes have less."""
MAX_JSON = 64_000_000
"""Bytes of a JSON body, which is held in memory; larger pictures are for forms."""
MAX_VALUES = 50_000
"""Brackets and commas of JSON. Each may become an object of 70 bytes."""
CLIP_MARK = b"ftyp"


@dataclass
class Received:
    """What was sent: its fields, and its files under the names that the job will have for them."""

    video: VideoIn
    folder: Path
    uploads: dict[str, Path] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def asked(self, service: Service) -> Asked:
        """The same as a job has it; pictures are read here.

        Raises:
            InputError: a picture or clip that is none, or two that say the same.
        """
        given, uploads = self.video, dict(self.uploads)
        start = [name for name in ("input_reference", "image") if name in uploads]
        if len(start) > 1:
            raise InputError("input_reference and image are the same start picture: send one")
        image = self._picture(uploads.pop(start[0]), "start.png", service) if start else None
        keyframes: list[tuple[float | None, str]] = []
        if "end_image" in uploads:
            keyframes.append((None, self._picture(uploads.pop("end_image"), "end.png", service)))
        clips = {name: self._clip(uploads.pop(name), name) for name in CLIPS if name in uploads}
        for number, keyframe in enumerate(given.keyframes):
            if keyframe.picture not in uploads:
                raise InputError(
                    f"keyframe {number + 1} names the picture '{keyframe.picture[:60]}', and no file of that "
                    "name was sent: add it as a file field"
                )
            keyframes.append(
                (keyframe.at, self._picture(uploads[keyframe.picture], f"key-{number}.png", service))
            )
        unused = set(uploads) - {keyframe.picture for keyframe in given.keyframes}
        if unused:
            raise InputError(
                f"file field '{min(unused)[:60]}' is not known: send {', '.join((*PICTURES, *CLIPS))}, "
                "or name it in keyframes"
            )
        model = given.model if given.model is not None else next(iter(service.config.offers))
        plain = given.model_dump(exclude={"model", "keyframes", "loras", "fps"})
        service.check_rate(model, given.fps)
        return Asked(
            **plain,
            model=model,
            image=image,
            keyframes=tuple(keyframes),
            loras=tuple((lora.name, lora.weight) for lora in given.loras),
            from_clip=clips.get("from_clip"),
            to_clip=clips.get("to_clip"),
        )

    def _picture(self, upload: Path, name: str, service: Service) -> str:
        self.files[name] = self.folder / name
        service.keep_picture(upload, self.files[name])
        return name

    def _clip(self, upload: Path, field_name: str) -> str:
        with upload.open("rb") as file:
            if file.read(12)[4:8] != CLIP_MARK:
                raise InputError(f"{field_name} is no MP4: send an MP4 file")
        name = f"{field_name}.mp4"
        self.files[name] = upload
        return name


async def received(request: Request) -> AsyncIterator[Received]:
    """Read a request's body; its files are gone when it is answered.

    Raises:
        HTTPException: 400, a body that cannot be read, or fields that are wrong. 413: too large.
        NoRoom: its files cannot be kept.
    """
    with _room():
        folder = await run_in_threadpool(_new_folder, request.app.state.uploads)
    uploads: dict[str, Path] = {}
    try:
        with _room():
            fields = await _read(request, folder, uploads)
        yield Received(_checked(fields), folder, uploads)
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoRoom(f"the upload cannot be kept ({error.strerror}): try again later") from error


def _new_folder(within: Path) -> Path:
    within.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=within))


async def _read(request: Request, folder: Path, uploads: dict[str, Path]) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        most = {"max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD}
        try:
            async with request.form(**most) as form:
                return await _fields(form, folder, uploads)
        except UnicodeError as error:  # of a charset that it names
            raise HTTPException(400, "the form's text cannot be read: send it as UTF-8") from error
    if kind != "application/json":
        raise HTTPException(415, f"content type '{kind[:60]}': send application/json or multipart/form-data")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_JSON:
            raise HTTPException(413, f"JSON has at most {MAX_JSON / 1e6:g} MB: send large files in a form")
    fields = await run_in_threadpool(_parsed, bytes(body))
    if isinstance(fields, dict):
        fields = await run_in_threadpool(_with_data_urls, fields, folder, uploads)
    return fields


def _parsed(body: bytes) -> Any:
    if sum(body.count(mark) for mark in b"[{,") > MAX_VALUES:
        raise HTTPException(400, f"the body has more values than any request: at most {MAX_VALUES:,}")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is no JSON: send an object with a prompt") from error


def _checked(fields: Any) -> VideoIn:
    if isinstance(fields, dict):
        fields = _with_extra(fields)
    try:
        return VideoIn.model_validate(fields)
    except ValidationError as error:
        raise HTTPException(400, told(error)) from error


def _with_extra(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with those of ``extra``: an object, its JSON, or ``extra[steps]`` of a form."""
    extra = fields.get(EXTRA, {})
    if isinstance(extra, str):
        extra = _parsed(extra.encode(errors="replace"))
    if not isinstance(extra, dict):
        raise HTTPException(400, f"{EXTRA}: send an object with further settings")
    plain = {name: value for name, value in fields.items() if name != EXTRA}
    for name in list(plain):
        found = re.fullmatch(rf"{EXTRA}\[(\w{{1,64}})\]", name)
        if found:
            extra = {**extra, found[1]: plain.pop(name)}
    twice = sorted(set(extra) & set(plain))
    if twice:
        raise HTTPException(400, f"{twice[0][:60]} stands in {EXTRA} and beside it: send it once")
    return {**plain, **extra}


def told(error: ValidationError) -> str:
    """The first fault of a body, as a line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:80] or "the body"
    return f"{where}: {first['msg'].lower()}"


async def _fields(form: FormData, folder: Path, uploads: dict[str, Path]) -> dict[str, Any]:
    """The fields of a form, and its files on disk."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name in uploads:
                raise HTTPException(400, f"file field '{name[:60]}' was sent twice: send it once")
            place = folder / f"upload-{len(uploads)}"
            await run_in_threadpool(_copied, value, place)
            uploads[name] = place
        elif name in JSON_FIELDS:
            fields[name] = _parsed(value.encode(errors="replace"))
        else:
            fields[name] = value
    return fields


def _copied(upload: UploadFile, place: Path) -> None:
    with place.open("wb") as file:
        shutil.copyfileobj(upload.file, file)


def _with_data_urls(fields: dict[str, Any], folder: Path, uploads: dict[str, Path]) -> dict[str, Any]:
    """JSON's pictures are ``data:`` URLs, by themselves or as OpenAI's ``{"image_url": ...}``; nothing is
    fetched from elsewhere."""
    left = dict(fields)
    for name in PICTURES:
        value = left.pop(name, None)
        if isinstance(value, dict):
            value = value.get("image_url", "")
        if value is None:
            continue
        mark = DATA_URL.match(value) if isinstance(value, str) else None
        if mark is None:
            raise HTTPException(
                400, f"{name}: send a file in a form, or a data:image/...;base64 URL; no other is fetched"
            )
        try:
            data = base64.b64decode(value[mark.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise HTTPException(400, f"{name}: the data URL is not base64") from error
        place = folder / f"upload-{len(uploads)}"
        place.write_bytes(data)
        uploads[name] = place
    return left


def schema_of() -> dict[str, Any]:
    """The body of both kinds, for the documentation."""
    video = VideoIn.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = video.pop("$defs", {})
    for name, inner in definitions.items():
        for place in ("keyframes", "loras"):
            items = video["properties"][place].get("items", {})
            if items.get("$ref", "").endswith(f"/{name}"):
                video["properties"][place]["items"] = inner
    files = {name: {"type": "string", "format": "binary"} for name in (*PICTURES, *CLIPS)}
    form = {**video, "properties": {**video["properties"], **files}}
    for name in JSON_FIELDS:
        form["properties"][name] = {"type": "string", "description": f"JSON: {name} as in the other body."}
    urls = {name: {"type": "string", "format": "uri"} for name in PICTURES}
    plain = {**video, "properties": {**video["properties"], **urls}}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": plain}, "multipart/form-data": {"schema": form}},
        }
    }
