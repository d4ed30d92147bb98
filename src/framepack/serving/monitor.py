"""What Prometheus asks of the service."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from framepack.serving.service import Service

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

    async def measured(self, request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        """Count a request, by its route as it is declared: ids of videos would be labels without end."""
        begun = time.perf_counter()
        response = await go_on(request)
        route = getattr(request.scope.get("route"), "path", "other")
        self._requests.labels(request.method, route, response.status_code).inc()
        self._seconds.labels(request.method, route).observe(time.perf_counter() - begun)
        return response

    def text(self) -> bytes:
        for status, count in self._service.store.counts().items():
            self._jobs.labels(status.value).set(count)
        self._workers.set(len(self._service.store.workers()))
        self._free.set(self._service.free)
        return generate_latest(self._registry)
