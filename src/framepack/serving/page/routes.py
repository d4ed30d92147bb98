"""What the page needs beside Gradio and the API: its own files, its news, and a login for browsers.

GET  /page/jobs            the newest videos of this client and what waits, by one query
GET  /page/{file}          scripts and styles
GET  /login, POST /login   a token for a cookie; POST /logout takes the cookie back
"""

from __future__ import annotations

import hashlib
import html
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse

from framepack import evaluation
from framepack.serving.api import Client
from framepack.serving.clients import MONTH, Sessions, Tokens
from framepack.serving.guard import COOKIE
from framepack.serving.jobs import ENDED, Job, Status
from framepack.serving.page.mount import POLICY
from framepack.serving.page.words import language_of, words
from framepack.serving.schemas import video_out
from framepack.serving.service import Service

STATIC = Path(__file__).parent / "static"
PLAYER = Path(evaluation.__file__).parent / "arena" / "page" / "player.js"
FILES = {file.name: file for file in (*STATIC.glob("*.css"), *STATIC.glob("*.js"), PLAYER)}
KINDS = {".css": "text/css", ".js": "text/javascript"}
NEWEST = 40
"""Videos that the page shows at first; older ones are asked of the API."""


def page_router(service: Service, sessions: Sessions, tokens: Tokens) -> APIRouter:
    """The endpoints of the page."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/page/jobs")
    def jobs(client: Client, request: Request) -> Response:
        """As in ``GET /v1/videos``, with places in the queue and what is wished; 304 if all is as it was."""
        found = service.store.listed(client, limit=NEWEST)
        told = hashlib.sha256(repr([(job.id, job.version) for job in found]).encode()).hexdigest()[:32]
        tag = f'"{told}"'
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return JSONResponse({"data": [_shown(job) for job in found]}, headers=headers)

    @routes.get("/page/{name}")
    def file(name: str) -> FileResponse:
        if name not in FILES:
            raise HTTPException(404, "not found")
        kind = KINDS[FILES[name].suffix]
        return FileResponse(FILES[name], media_type=kind, headers={"cache-control": "no-cache"})

    @routes.get("/login")
    def login(request: Request) -> Response:
        if not tokens.secrets:
            return RedirectResponse("/", 303)
        return _form(request)

    @routes.post("/login")
    def check(request: Request, token: Annotated[str, Form(max_length=1000)] = "") -> Response:
        client = tokens.client(token.strip())
        if client is None:
            return _form(request, wrong=True)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            sessions.cookie(client),
            max_age=MONTH,
            httponly=True,
            samesite="strict",
            secure=urlsplit(str(request.url)).scheme == "https",
        )
        return answer

    @routes.post("/logout")
    def logout() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return routes


def _shown(job: Job) -> dict[str, Any]:
    told = video_out(job).model_dump()
    waits = job.status not in ENDED and job.status is not Status.RUNNING
    told["framepack"] |= {
        "place": job.position if waits else None,
        "wish": job.wish,
        "redo": None if job.redo is None else job.redo["section"],
        "ended": job.ended,
    }
    return told


LOGIN = """<!doctype html>
<html lang="{language}">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<form method="post" action="login">
<h1>framepack</h1>
<p>{sign_in_how}</p>
{wrong}
<label>{token}<input type="password" name="token" autocomplete="current-password" autofocus required></label>
<button>{sign_in}</button>
</form>
</html>
"""


def _form(request: Request, *, wrong: bool = False) -> HTMLResponse:
    language = language_of(request.headers, request.cookies)
    said = {name: html.escape(text) for name, text in words(language).items()}
    fault = f'<p class="wrong" role="alert">{said["sign_in_wrong"]}</p>' if wrong else ""
    style = (STATIC / "login.css").read_text(encoding="utf-8")
    page = LOGIN.format(**{**said, "language": language, "style": style, "wrong": fault})
    headers = {"content-security-policy": POLICY, "cache-control": "no-store"}
    return HTMLResponse(page, 401 if wrong else 200, headers=headers)
