"""Files as answers, in ranges if asked, while they grow or are deleted too.

Starlette's own looks at a file by its path, then opens it: what grew in between is sent beyond the length
that was told, and what was deleted is a fault. Here it is opened first, and sent as long as it was then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

RANGE = re.compile(r"bytes\s*=\s*(\d{0,15})-(\d{0,15})\s*", re.ASCII | re.IGNORECASE)
CHUNK = 256 * 1024


class FileAnswer(StreamingResponse):
    """The bytes of a file, or one range of them. Several ranges at once are answered by the whole, which
    RFC 9110 allows.

    Args:
        name: what browsers would save it as; None for what is only shown. cache: the Cache-Control header.

    Raises:
        FileNotFoundError: it is gone. HTTPException: 416, a range that begins past its end.
    """

    def __init__(
        self,
        path: Path,
        request: Request,
        media_type: str,
        *,
        name: str | None = None,
        cache: str = "no-store",
    ) -> None:
        self.file = path.open("rb")
        told = os.fstat(self.file.fileno())
        size, tag = told.st_size, f'"{told.st_mtime_ns:x}-{told.st_size:x}"'
        span = _span(request, size, tag)
        if span is not None and not span:
            self.file.close()
            raise HTTPException(416, "the range begins past the end", {"content-range": f"bytes */{size}"})
        sent = range(size) if span is None else span
        headers = {
            "accept-ranges": "bytes",
            "content-length": str(len(sent)),
            "cache-control": cache,
            "etag": tag,
        }
        if span is not None:
            headers["content-range"] = f"bytes {sent.start}-{sent.stop - 1}/{size}"
        if name is not None:
            headers["content-disposition"] = f'attachment; filename="{name}"'
        super().__init__(
            _pieces(self.file, sent), 200 if span is None else 206, headers=headers, media_type=media_type
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.file.close()


def _span(request: Request, size: int, tag: str) -> range | None:
    """The bytes that are asked for, none of them where they begin past the end; None for the whole."""
    asked = RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or request.headers.get("if-range", tag) != tag:
        return None
    first, last = asked.groups()
    if not first:
        return range(max(0, size - int(last)), size) if last else None
    if last and int(last) < int(first):
        return None
    return range(int(first), min(size, int(last) + 1) if last else size)


def _pieces(file: BinaryIO, sent: range) -> Iterator[bytes]:
    file.seek(sent.start)
    left = len(sent)
    while left and (piece := file.read(min(CHUNK, left))):
        left -= len(piece)
        yield piece
