"""A service with its page at a port of this machine, in this process, and a worker in a thread of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from framepack.evaluation.arena.server import listen
from framepack.serving.app import create_app
from framepack.serving.clients import Tokens
from framepack.serving.worker import Worker
from service_site import Site

PATIENCE = 120.0


@contextmanager
def served(data: Path, *, tokens: Tokens | None = None, works: bool = False) -> Iterator[tuple[Site, str]]:
    """The site and its address; ``works``: with a worker."""
    site = Site(data)
    app = create_app(site.service, tokens)
    listening, address = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    ends = threading.Event()
    threads = [threading.Thread(target=server.run, kwargs={"sockets": [listening]})]
    if works:
        worker = Worker(site.store, site.config, f"page-{data.name}", stop=ends.is_set)
        threads.append(threading.Thread(target=worker.run))
    for thread in threads:
        thread.start()
    try:
        begun = time.monotonic()
        while not server.started:
            assert time.monotonic() - begun < PATIENCE
            time.sleep(0.02)
        yield site, address.rstrip("/")
    finally:
        ends.set()
        server.should_exit = True
        for thread in threads:
            thread.join(PATIENCE)
        site.store.close()
