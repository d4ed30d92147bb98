"""Ways to have workers, by name: processes of this machine, or actors of Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from framepack.errors import UnknownNameError
from framepack.serving.config import ServiceConfig
from framepack.serving.store import JobStore


class Engine(Protocol):
    """Workers of a service: kept alive from ``start`` to ``close``."""

    @property
    def processes(self) -> list[int]: ...

    def start(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Staff:
    """workers: how many, or how few where there is no work. most, address: of Ray, see ``RayEngine``."""

    workers: int = 1
    most: int | None = None
    address: str = "local"


def _processes(store: JobStore, config: ServiceConfig, staff: Staff) -> Engine:
    from framepack.serving.supervisor import Supervisor

    return Supervisor(store, config, staff.workers)


def _ray(store: JobStore, config: ServiceConfig, staff: Staff) -> Engine:
    from framepack.serving.ray_engine import RayEngine

    return RayEngine(store, config, staff.workers, staff.most, staff.address)


ENGINES: dict[str, Callable[[JobStore, ServiceConfig, Staff], Engine]] = {
    "processes": _processes,
    "ray": _ray,
}


def engine_of(name: str, store: JobStore, config: ServiceConfig, staff: Staff) -> Engine:
    """An engine by its name, not yet started. Raises UnknownNameError."""
    if name not in ENGINES:
        raise UnknownNameError("engine", name, list(ENGINES))
    return ENGINES[name](store, config, staff)
