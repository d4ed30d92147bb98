"""The service over HTTP: page, API, health, metrics and documentation, behind one guard."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from framepack import __version__
from framepack.errors import FramePackError, InputError, OutputError
from framepack.serving.api import router
from framepack.serving.clients import Rate, Sessions, Tokens
from framepack.serving.guard import SLOW, Guard, fault
from framepack.serving.jobs import NoSuchJob, QueueFull, WrongState
from framepack.serving.monitor import Measured, Monitor
from framepack.serving.page.mount import Page
from framepack.serving.page.routes import page_router
from framepack.serving.service import NoRoom, Service

log = logging.getLogger("framepack.server")

STATUSES: tuple[tuple[type[Exception], int, str], ...] = (
    (NoSuchJob, 404, "not_found"),
    (WrongState, 409, "wrong_state"),
    (QueueFull, 429, "queue_full"),
    (NoRoom, 507, "no_room"),
    (InputError, 400, "invalid_request"),
    (OutputError, 507, "storage_error"),
    (SQLAlchemyError, 503, "store_unavailable"),
    (FramePackError, 500, "failed"),
)
"""Of errors, by their kind, the first that fits."""
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "wrong_type",
    416: "wrong_range",
    429: "rate_limit_exceeded",
}


def create_app(
    service: Service,
    tokens: Tokens | None = None,
    hosts: Collection[str] | None = None,
    slow: float = SLOW,
) -> FastAPI:
    """The application.

    Args:
        tokens: of its clients; none lets everybody in. hosts, slow: see ``guard.Guard``.
    """
    tokens = tokens or Tokens({})
    monitor = Monitor(service)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        page.begin()  # beside the API, which answers already
        yield
        await page.end()

    app = FastAPI(
        title="framepack",
        version=__version__,
        description="Long videos, made section by section. The video endpoints are OpenAI's.",
        redoc_url=None,
        lifespan=living,
    )
    app.include_router(router(service))
    sessions = Sessions(tokens, service.config.data)
    app.state.sessions = sessions
    app.include_router(page_router(service, sessions, tokens))
    page = Page(service, app.router.default, tokens=bool(tokens.secrets))
    app.router.default = page
    app.state.uploads = service.places.uploads

    @app.get("/health", tags=["service"])
    def health() -> dict[str, object]:
        """Whether the store answers, and how many workers are there."""
        return {"status": "ok", "version": __version__, "workers": len(service.store.workers())}

    @app.get("/metrics", tags=["service"], response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(monitor.text(), media_type=CONTENT_TYPE_LATEST)

    for kind, status, code in STATUSES:
        app.add_exception_handler(kind, _teller(service, status, code))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "invalid_request")
        return JSONResponse(
            fault(error.status_code, code, str(error.detail)), error.status_code, error.headers
        )

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))[:80]
        return JSONResponse(
            fault(400, "invalid_request", f"{where or 'the body'}: {first['msg'].lower()}"), 400
        )

    @app.exception_handler(ClientDisconnect)
    def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody reads

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("%r %r", request.method, request.url.path, exc_info=error)
        return JSONResponse(fault(500, "internal_error", "a fault of the program: its log says more"), 500)

    app.add_middleware(Measured, monitor=monitor)
    app.add_middleware(
        Guard,
        tokens=tokens,
        sessions=sessions,
        rate=Rate(service.limits.posts),
        upload=service.limits.upload,
        hosts=hosts,
        slow=slow,
    )
    return app


def _teller(service: Service, status: int, code: str) -> Callable[[Request, Exception], JSONResponse]:
    def tell(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, SQLAlchemyError):
            log.error("the store does not answer: %s", error)
            return JSONResponse(fault(status, code, "the store does not answer: try again later"), status)
        if status >= 500:
            log.error("%r %r: %s", request.method, request.url.path, error)
        return JSONResponse(fault(status, code, service.config.unplaced(str(error))), status)

    return tell
