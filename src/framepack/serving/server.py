"""One process that serves a service, and watches over its workers."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from framepack.errors import FramePackError
from framepack.serving.service import Service

log = logging.getLogger("framepack.server")

CLEAN = 60.0
"""Seconds between two looks for what is to be deleted."""
GRACE = 2
"""Seconds that a browser's open connection is waited for when the server ends."""
IDLE = 20
"""Seconds that a connection without a request is kept."""


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


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until interrupted; then end quietly, whatever browsers are still connected."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=IDLE,
        server_header=False,
    )
    with suppress(KeyboardInterrupt):  # uvicorn has ended by then, and passes on what ended it
        uvicorn.Server(config).run(sockets=[listening])
