"""What Prometheus asks of the service."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framepack.serving.service import Service

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Any other is counted as one: a client may send what it likes, and each would be a label."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds."""


class Monitor:
    """Numbers of one server process, and of the store that all share."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self._jobs = Gauge("framepack_videos", "Videos by status", ["status"], registry=self._registry)
        self._workers = Gauge("framepack_workers", "Workers that were heard of", registry=self._registry)
        self._free = Gauge("framepack_disk_free_bytes", "Free on the disk of videos", registry=self._registry)
        self._requests = Counter(
            "framepack_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "framepack_request_seconds",
            "Until the answer begins",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request, by its route as it is declared: ids of videos would be labels without end."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        for status, count in self._service.store.counts().items():
            self._jobs.labels(status.value).set(count)
        self._workers.set(len(self._service.store.workers()))
        self._free.set(self._service.free)
        return generate_latest(self._registry)


class Measured:
    """ASGI middleware: tells a monitor of each answer as it begins."""

    def __init__(self, app: ASGIApp, monitor: Monitor) -> None:
        self.app, self.monitor = app, monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = time.perf_counter()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.monitor.answered(scope, message["status"], time.perf_counter() - begun)
            await send(message)

        await self.app(scope, receive, told)
