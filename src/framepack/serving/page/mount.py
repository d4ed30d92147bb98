"""The page within the service: loaded beside the server, which answers meanwhile, and mounted at ``/``.

Gradio takes seconds to import. So nothing here imports it: `Page` has a thread do that once the server
listens, and whoever asks for the page before waits until it is there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import suppress

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framepack.serving.page.words import LANGUAGES, PREFIX, language_of, words
from framepack.serving.service import Service

log = logging.getLogger("framepack.page")

OWN = (
    *("", "assets", "static", "svelte", "theme.css", "favicon.ico", "manifest.json", "robots.txt", "config"),
    "gradio_api",
)
"""What the paths of Gradio begin with; all other paths are the service's."""
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "connect-src 'self' data: blob:",
        "frame-ancestors 'self'",
    )
)
"""Browsers load nothing from elsewhere, whatever a library would like."""


class Page:
    """ASGI application: Gradio's, as soon as it is there; for paths that nothing else has.

    Args:
        other: answers paths of the service that do not exist.
    """

    def __init__(self, service: Service, other: ASGIApp, *, tokens: bool) -> None:
        self._service, self._other, self._tokens = service, other, tokens
        self._task: asyncio.Task[None] | None = None
        self._there: asyncio.Future[FastAPI] | None = None
        self._end = asyncio.Event()

    def begin(self) -> None:
        """Load it, in the loop that runs."""
        if self._task is None:
            self._there = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._serve())

    async def end(self) -> None:
        if self._task is not None:
            self._end.set()
            with suppress(Exception):
                await self._task

    async def _serve(self) -> None:
        assert self._there is not None
        try:
            app = await run_in_threadpool(load, self._service)
            async with app.router.lifespan_context(app):
                self._there.set_result(app)
                await self._end.wait()
        except Exception as error:
            log.error("the page cannot be shown", exc_info=error)
            if not self._there.done():
                self._there.set_exception(error)
                self._there.exception()  # it is told of above, also where nobody asks for the page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] != "http" or path.split("/")[1] not in OWN:
            return await self._other(scope, receive, send)
        self.begin()
        assert self._there is not None
        try:
            app = await asyncio.shield(self._there)
        except ModuleNotFoundError as error:
            told = f"the page needs {error.name}, which is not installed: pip install 'framepack-ai[serve]'\n"
            return await PlainTextResponse(told, 503)(scope, receive, send)
        except Exception:
            told = "the page cannot be shown: the service's log says more; the API is at /v1\n"
            return await PlainTextResponse(told, 503)(scope, receive, send)
        if path != "/":
            return await app(scope, receive, send)
        return await self._front(app, scope, receive, send)

    async def _front(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """The page's HTML, with what ``studio.js`` needs to know, in the reader's language."""
        request = Request(scope)
        language = language_of(request.headers, request.cookies)
        head = opening(language, str(request.state.client) if self._tokens else None)
        plain = [pair for pair in scope["headers"] if pair[0] not in (b"accept-encoding", b"if-none-match")]
        start: Message = {}
        body = b""

        async def changed(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            whole = body.replace(b"<head>", b"<head>" + head, 1).replace(
                b'<html\n\tlang="en"', f'<html\n\tlang="{language}"'.encode(), 1
            )
            whole = _without_elsewhere(whole)
            kept = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
            own = [
                (b"content-length", str(len(whole)).encode()),
                (b"content-security-policy", POLICY.encode()),
                (b"cache-control", b"no-store"),
            ]
            await send({**start, "headers": [*kept, *own]})
            await send({"type": "http.response.body", "body": whole})

        await app({**scope, "headers": plain}, receive, changed)


def opening(language: str, client: str | None) -> bytes:
    """What is written at the head of the page.

    Args:
        client: who has signed in; None where nobody has to.
    """
    told = {"language": language, "languages": LANGUAGES, "client": client, "words": words(language)}
    # Gradio has the words of its own parts in the browser's language, and none to choose one by.
    script = (
        f'Object.defineProperty(navigator, "language", {{ value: {json.dumps(language)} }});'
        f"window.framepack = {_script_json(told)};"
    )
    links = '<link rel="stylesheet" href="page/studio.css"><meta name="robots" content="noindex">'
    return f"<script>{script}</script>{links}".encode()


def _script_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _without_elsewhere(page: bytes) -> bytes:
    """The page without Gradio's own pictures for links to it, which lie at another site."""
    lines = page.split(b"\n")
    return b"\n".join(line for line in lines if b'content="https://' not in line or b"<script" in line)


def load(service: Service) -> FastAPI:
    """The page as an application. Takes seconds: Gradio is imported here."""
    chosen = service.places.chosen
    chosen.mkdir(parents=True, exist_ok=True)
    # Gradio reads these where it needs them: nothing is told to anybody, and files lie with the service's.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(chosen.absolute())
    import gradio as gr

    from framepack.serving.page.form import blocks
    from framepack.serving.page.look import theme

    texts = {tag: {PREFIX + name: text for name, text in words(tag).items()} for tag in LANGUAGES}
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    return gr.mount_gradio_app(
        app,
        blocks(service),
        path="/",
        theme=theme(),
        i18n=gr.I18n(**texts),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        max_file_size=service.limits.upload,
        enable_monitoring=False,
    )
