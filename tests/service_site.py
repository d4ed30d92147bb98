"""A service over HTTP for tests: in this process, without workers unless a test adds one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi.testclient import TestClient
from PIL import Image

from framepack.serving.app import create_app
from framepack.serving.clients import Tokens
from framepack.serving.config import ServiceConfig
from framepack.serving.jobs import Status
from framepack.serving.service import Limits, Service
from framepack.serving.store import JobStore
from framepack.serving.worker import Worker

PROMPT = "A red heart moves right over green hills."
QUICK = {"seconds": 2.0, "steps": 2, "guidance": 1.0, "seed": 5}
ANN, BOB = "ann-has-a-long-secret", "bob-has-a-long-secret"


def picture(size: tuple[int, int] = (64, 48), kind: str = "PNG", colour: str = "red") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, colour).save(made, kind)
    return made.getvalue()


@dataclass
class Site:
    """One service and a client of it."""

    data: Path
    limits: Limits = field(default_factory=lambda: Limits(spare=0.0))
    tokens: Tokens = field(default_factory=lambda: Tokens({}))
    loras: Path | None = None

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.store = JobStore(f"sqlite:///{self.data}/jobs.sqlite")
        self.config = ServiceConfig(
            data=self.data, store=self.store.url, threads=1, niceness=0, loras=self.loras
        )
        self.service = Service(self.store, self.config, self.limits)
        self.app = create_app(self.service, self.tokens, {"testserver"})
        self.http = TestClient(self.app, raise_server_exceptions=False)

    def make(self, **fields: object) -> dict:
        answer = self.http.post("/v1/videos", json={"prompt": PROMPT, **QUICK, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def folders(self) -> list[str]:
        return self.service.places.names()


@contextmanager
def with_video(data: Path) -> Iterator[tuple[Site, str]]:
    """A service with one finished video, and its id."""
    site = Site(data)
    name = site.make()["id"]
    assert Worker(site.store, site.config, "w").once()
    assert site.store.get(name).status is Status.COMPLETED
    yield site, name
    site.store.close()
