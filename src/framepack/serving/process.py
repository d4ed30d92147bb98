"""Where a worker process begins: nothing is imported here that its parent would have to import too."""

from __future__ import annotations

from framepack.serving.config import ServiceConfig


def begin(config: ServiceConfig, name: str, device: str) -> None:
    from framepack.serving.worker import work

    work(config, name, device)
