"""One request that a service must stand, and how its body is written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import hostile_pictures as pictures

REFUSED = range(400, 500)
TAKEN = range(200, 207)
EITHER = (*TAKEN, *REFUSED)
"""Readers differ in what they forgive; whatever they say, nothing else may come of it."""
BOUNDARY = b"x-boundary"
FORM = b"multipart/form-data; boundary=" + BOUNDARY
JSON = b"application/json"

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request. ``{id}`` in its path stands for a finished video."""

    name: str
    method: str = "POST"
    path: str = "/v1/videos"
    query: bytes = b""
    headers: Headers = ()
    host: bytes | None = b"testserver"
    kind: bytes | None = None
    body: bytes = b""
    answers: Iterable[int] = REFUSED
    gone: tuple[bytes, ...] = field(default=())
    """What may not be in any file that is kept of it."""


def part(name: str | bytes, value: bytes, filename: str | bytes | None = None, more: bytes = b"") -> bytes:
    name = name.encode() if isinstance(name, str) else name
    told = b'Content-Disposition: form-data; name="' + name + b'"'
    if filename is not None:
        filename = filename.encode("utf-8", "surrogatepass") if isinstance(filename, str) else filename
        told += b'; filename="' + filename + b'"'
    return b"--" + BOUNDARY + b"\r\n" + told + b"\r\n" + more + b"\r\n" + value + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"
PROMPT = part("prompt", b"a cat")
NESTED = b'--in\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n--in--'
PICTURE = pictures.saved(pictures.noise(), "PNG")


def form(name: str, *parts: bytes, answers: Iterable[int] = REFUSED, **more: Any) -> Case:
    return Case(name=name, kind=FORM, body=b"".join(parts) + END, answers=answers, **more)


def plain(name: str, body: object, **more: Any) -> Case:
    """JSON, or bytes that claim to be."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Case(name=name, kind=JSON, body=sent, **more)


def with_picture(data: bytes) -> tuple[bytes, bytes]:
    return PROMPT, part("image", data, "a.png")
