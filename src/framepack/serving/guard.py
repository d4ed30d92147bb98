"""What stands before every request: whose it is, how large and how slow it may be, and where it comes from.

Plain ASGI, so that it sees a body as it comes and streams pass through it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framepack.serving.clients import LOCAL, Rate, Sessions, Tokens

COOKIE = "framepack_session"
LOGIN = "/login"
OPEN = ("/health", LOGIN)
"""What needs no token."""
SAFE = ("GET", "HEAD", "OPTIONS")
UPLOADS = ("/v1/videos", "/v1/videos/cost")
"""Of the API, what takes files; all else of it is a few words."""
SMALL = 1_000_000
"""Bytes of a request of a few words."""
SLOW = 30.0
"""Seconds without a byte after which a body is not waited for any longer."""
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]*))(?::[0-9]*)?")
SIZE = re.compile(r"[0-9]{1,15}")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"SAMEORIGIN"),
)


class Guard:
    """ASGI middleware.

    Args:
        hosts: names by which the service may be called, where only this machine may call it: pages of other
            sites could else reach it under a name of theirs. None for any.
        slow: seconds without a byte after which a body is not waited for any longer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens,
        sessions: Sessions,
        rate: Rate,
        upload: int,
        hosts: Collection[str] | None,
        slow: float = SLOW,
    ) -> None:
        self.app, self.tokens, self.sessions, self.rate = app, tokens, sessions, rate
        self.upload, self.hosts, self.slow = upload, hosts, slow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        fault = self._fault(scope, headers)
        if fault is not None and fault[0] == 401 and _reads(scope, headers):
            return await RedirectResponse(LOGIN, 303)(scope, receive, send)
        if fault is not None:
            return await _refuse(scope, send, *fault)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        body = _Body(receive, self._most(scope), self.slow)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                body.whole = True  # what is not read by now is no matter
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await self.app(scope, body.receive, marked)

    def _fault(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        """(status, code, message) of what is not let in; else the client is in ``state``."""
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return 403, "forbidden_host", "this service answers under its own address alone"
        safe = scope.get("method", "GET") in SAFE and scope["type"] == "http"
        origin = headers.get("origin")
        if not safe and origin is not None and _site(origin) != host:
            return 403, "forbidden_origin", "this comes from a page of another site"
        client = self._client(headers)
        if client is None and scope["path"] not in OPEN:
            return 401, "invalid_api_key", "no token that is known: send it as Authorization: Bearer TOKEN"
        scope.setdefault("state", {})["client"] = client
        length, most = headers.get("content-length", "0"), self._most(scope)
        if not SIZE.fullmatch(length) or int(length) > most:
            return 413, "too_large", _at_most(most)
        counts = client if client is not None else (scope.get("client") or ("",))[0]
        if scope["type"] == "http" and not safe and (wait := self.rate.seconds_left(counts)):
            return 429, "rate_limit_exceeded", f"too many requests: try again in {wait:.0f} s"
        return None

    def _most(self, scope: Scope) -> int:
        """Bytes of a body."""
        path = scope["path"]
        return min(self.upload, SMALL) if path.startswith("/v1/") and path not in UPLOADS else self.upload

    def _client(self, headers: Headers) -> str | None:
        if not self.tokens.secrets:
            return LOCAL
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.tokens.client(token.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return None if cookie is None else self.sessions.client(cookie.value)


class _Body:
    """A request's body, counted and timed as it comes. Raises HTTPException into whatever reads it."""

    def __init__(self, receive: Receive, most: int, slow: float) -> None:
        self._receive, self._most, self._slow, self._size, self.whole = receive, most, slow, 0, False

    async def receive(self) -> Message:
        if self.whole:  # now only the end of the connection is waited for
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._slow)
        except TimeoutError:
            raise HTTPException(408, f"nothing came for {self._slow:g} s: send it again") from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            if self._size > self._most:
                raise HTTPException(413, _at_most(self._most))
        return message


def _reads(scope: Scope, headers: Headers) -> bool:
    """Whether somebody looks at this in a browser."""
    return scope.get("method") == "GET" and "text/html" in headers.get("accept", "")


def _at_most(size: int) -> str:
    return f"a request of this kind has at most {size / 1e6:g} MB"


def _site(origin: str) -> str | None:
    """Host and port of an Origin header; None for what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(host: str) -> str | None:
    """A Host header without its port; None for what is none."""
    found = HOST.fullmatch(host.lower())
    return None if found is None else found[1] or found[2]


async def _refuse(scope: Scope, send: Send, status: int, code: str, message: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008, "reason": message})
    body = json.dumps(fault(status, code, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def fault(status: int, code: str, message: str) -> dict[str, object]:
    """OpenAI's shape of an error."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    # It may repeat what a client sent: bytes that are no text, and control characters.
    message = "".join(c if c.isprintable() else "?" for c in message)
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
