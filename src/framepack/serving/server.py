"""One process that serves a service, and watches over its workers."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import h11
import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from uvicorn.protocols.http.h11_impl import H11Protocol

from framepack.errors import FramePackError
from framepack.serving.service import Service

log = logging.getLogger("framepack.server")

CLEAN = 60.0
"""Seconds between two looks for what is to be deleted."""
GRACE = 2
"""Seconds that a browser's open connection is waited for when the server ends."""
IDLE = 20
"""Seconds that a connection without a request is kept, and that one may take to send its headers."""
CONNECTIONS = 500
"""At once; beyond these, requests are told to come again."""


class Hurried(H11Protocol):
    """Ends connections that do not send their headers in time: uvicorn would wait for ever."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._count()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._count()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._count()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _count(self) -> None:
        """From when a request is awaited until its headers are there."""
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self.late is None:
            self.late = self.loop.call_later(IDLE, self.transport.close)

    def _stop(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None


@contextmanager
def cleaning(service: Service) -> Iterator[None]:
    """Delete what is past its days or over the quota, now and every minute."""
    end = threading.Event()

    def clean() -> None:
        while True:
            try:
                for name in service.clean():
                    log.info("%s deleted: it was past its days, or over the quota", name)
            except (SQLAlchemyError, FramePackError, OSError) as error:
                log.warning("nothing could be cleaned up: %s", error)
            if end.wait(CLEAN):
                return

    thread = threading.Thread(target=clean, name="cleaner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def server_of(app: FastAPI) -> uvicorn.Server:
    """A server that waits for no client longer than need be."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        http=Hurried,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=IDLE,
        server_header=False,
    )
    return uvicorn.Server(config)


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until interrupted; then end quietly, whatever browsers are still connected."""
    with suppress(KeyboardInterrupt):  # uvicorn has ended by then, and passes on what ended it
        server_of(app).run(sockets=[listening])
