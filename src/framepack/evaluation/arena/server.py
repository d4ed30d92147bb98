"""The arena in the browser: pairs by opaque ids, their videos, and judgements as they are made.

    GET    /api/start                 the question, and who may judge
    POST   /api/pairs                 {judge} -> the next pair
    PUT    /api/pairs/ID/judgement    {choice} -> progress; acknowledged when it is on disk
    DELETE /api/pairs/ID/judgement    undo it -> the pair, to be shown again
    GET    /videos/ID/SIDE            a video of a pair, in ranges if asked

Handlers are plain functions: FastAPI runs them in threads, so that waiting for a disk or for the log's lock
blocks nobody else. The state is the log alone; a server that was killed is gone on with by the next.
"""

from __future__ import annotations

import socket
import time
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel

from framepack.errors import FramePackError, InputError
from framepack.evaluation.arena.folder import ArenaFolder
from framepack.evaluation.arena.log import Choice, JudgementLog, Pair
from framepack.evaluation.arena.pairs import next_pair, progress
from framepack.evaluation.arena.standings import standings

PAGE = Path(__file__).parent / "page"
LONGEST_NAME = 60
GRACE = 2
"""Seconds that a browser's open connection is waited for when the server ends."""


class Asking(BaseModel):
    judge: str


class Answer(BaseModel):
    choice: Choice


def create_app(
    arena: ArenaFolder,
    *,
    question: str,
    default_question: bool = False,
    judges: Sequence[str] | None = None,
    seed: int = 0,
    show_results: bool = False,
) -> FastAPI:
    """The arena of a folder.

    Args:
        question: what judges are asked, and as what the log has it. default_question: browsers may show it in
            their own language. judges: names that may judge; None for any. show_results: serve ``/results``.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    log = JudgementLog(arena.own)

    def far(judge: str) -> dict[str, int]:
        return progress(arena, log, judge=judge, question=question)._asdict()

    def find(pair_id: str) -> Pair:
        if pair_id not in log.pairs:
            log.refresh()  # another server on the same folder may have given it
        if pair_id not in log.pairs:
            raise HTTPException(404, "no such pair")
        return log.pairs[pair_id]

    @app.exception_handler(FramePackError)
    def tell(request: Request, error: FramePackError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=503)

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))

    @app.get("/api/start")
    def start() -> dict[str, object]:
        return {"question": None if default_question else question, "judges": judges, "results": show_results}

    @app.post("/api/pairs")
    def ask(asking: Asking) -> dict[str, object]:
        judge = _checked_name(asking.judge, judges)
        with log.held():
            pair = next_pair(arena, log, judge=judge, question=question, seed=seed, now=time.time())
            log.give(pair)
            return _shown(pair) | {"progress": far(judge)}

    @app.put("/api/pairs/{pair_id}/judgement")
    def judge_pair(pair_id: str, answer: Answer) -> dict[str, object]:
        pair = find(pair_id)
        with log.held():
            log.judge(pair_id, answer.choice, time.time())
            return {"progress": far(pair.judge)}

    @app.delete("/api/pairs/{pair_id}/judgement")
    def undo(pair_id: str) -> dict[str, object]:
        pair = find(pair_id)
        with log.held():
            log.judge(pair_id, None, time.time())
            return _shown(pair) | {"progress": far(pair.judge)}

    @app.get("/videos/{pair_id}/{side}")
    def video(pair_id: str, side: Literal["left", "right"]) -> FileResponse:
        pair = find(pair_id)
        path = arena.rows.get(pair.row(side) or "", {}).get(pair.clip)
        if path is None or not path.is_file():
            raise HTTPException(404, "the video is gone")
        # The file's own name, time and size in the headers would tell rows apart.
        headers = {
            "etag": f'"{pair_id}-{side}"',
            "last-modified": "Thu, 01 Jan 1970 00:00:00 GMT",
            "cache-control": "private, max-age=3600",
        }
        return FileResponse(path, media_type="video/mp4", headers=headers)

    if show_results:
        pages = Environment(loader=FileSystemLoader(PAGE), autoescape=True)

        @app.get("/results")
        def results() -> HTMLResponse:
            current = JudgementLog(arena.own)  # its own: the other one grows under other threads
            current.refresh()
            try:
                found = standings(current, question)
            except InputError:
                found = None  # nothing is judged yet
            return HTMLResponse(pages.get_template("results.html").render(found=found, question=question))

    return app


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until interrupted; then end quietly, whatever browsers are still connected."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
    with suppress(KeyboardInterrupt):  # uvicorn has ended by then, and passes on what ended it
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens at a place, and its address for a browser; port 0 takes a free one.

    Raises:
        InputError: the place is taken, or not this machine's.
    """
    six = ":" in host
    try:
        found = socket.create_server((host, port), family=socket.AF_INET6 if six else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot listen at {host}, port {port} ({reason}): choose another --port, 0 for any, or --host"
        ) from error
    # Connections inherit it. Else the body of an answer, sent after its headers, waits 40 ms for the client
    # to acknowledge those: asyncio sees to it only on sockets that name their protocol.
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return found, f"http://{f'[{here}]' if six else here}:{found.getsockname()[1]}/"


def _shown(pair: Pair) -> dict[str, object]:
    """All that a judge may learn of a pair."""
    return {"id": pair.id, "left": f"/videos/{pair.id}/left", "right": f"/videos/{pair.id}/right"}


def _checked_name(name: str, judges: Sequence[str] | None) -> str:
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise HTTPException(422, f"a judge's name has 1 to {LONGEST_NAME} characters")
    if judges is not None and name not in judges:
        raise HTTPException(403, "this name is not among the judges")
    return name
