"""Workers as actors of Ray, on as many machines as its cluster has; as many as there is work for.

Each actor is one worker of the service, see ``worker.py``: it leases jobs from the same store, and writes to
the same folder, which all machines must have under the same path. An actor, or its machine, may go at any
moment: another one goes on from the last section on disk.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from framepack.errors import FramePackError, InputError, OutputError, first_line
from framepack.serving.config import ServiceConfig
from framepack.serving.jobs import Status, worker_name
from framepack.serving.store import JobStore
from framepack.serving.supervisor import GRACE, LATEST, SOON

log = logging.getLogger("framepack.ray")

INSTALL = "pip install 'framepack-ai[ray]'"
LOCAL = "local"
LOOK = 0.5
"""Seconds between two looks at jobs and actors."""
IDLE = 30.0
"""Seconds without work after which an actor that is not of the fewest ends."""
OBJECTS = 80 * 2**20
"""Bytes of Ray's own store of objects, about the least that it takes: nothing goes through it here."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_METRICS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
"""Nothing is sent anywhere, nothing said that is not of the service, and workers are as nice as it says."""


class RayWorker:
    """The actor: one worker. Nothing heavy is imported before it works."""

    def __init__(self) -> None:
        self._end = threading.Event()

    def work(self, config: ServiceConfig, name: str, device: str, idle: float) -> None:
        """Carry out jobs until told to end, or without any for ``idle`` seconds."""
        from framepack.serving.worker import labour

        if not config.data.is_dir():
            raise OutputError(
                f"{socket.gethostname()} has no folder '{config.data}': share it under the same path"
            )
        os.nice(config.niceness)
        labour(config, name, device, self._end.is_set, idle)

    def end(self) -> None:
        """Have it give its job back, and end."""
        self._end.set()


@dataclass(frozen=True, eq=False)
class _Hired:
    """An actor, what it answers when it ends, and whether it stays without work."""

    name: str
    actor: Any
    ended: Any
    begun: float
    stays: bool


class RayEngine:
    """As many workers as jobs are there, ``least`` to ``most``, until it is closed.

    Args:
        most: as many as the cluster has room for where it is None. With more than that, those that do not fit
            wait, and have a cluster that can grow do so.
        address: ``local`` for a Ray of its own, ``auto`` for the one of this machine, or ``HOST:PORT``.
        idle: seconds without work after which those above ``least`` end.
    """

    def __init__(
        self,
        store: JobStore,
        config: ServiceConfig,
        least: int,
        most: int | None = None,
        address: str = LOCAL,
        idle: float = IDLE,
    ) -> None:
        self.store, self.config, self.least, self.most = store, config, least, most
        self.address, self.idle = address, idle
        self._needs: dict[str, float] = {}
        self._hired: list[_Hired] = []
        self._wait = self._not_before = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray", daemon=True)

    @property
    def processes(self) -> list[int]:
        """Numbers of those that work, each on its own machine."""
        names = {hired.name for hired in self._hired}
        return [int(about["process"]) for name, about in self.store.workers().items() if name in names]

    @property
    def workers(self) -> int:
        """Actors that there are, or that wait for a place."""
        return len(self._hired)

    def start(self) -> None:
        """Raises InputError: there is no Ray, or none that can be used."""
        device = self.config.devices[0]
        if device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device '{device}': Ray places workers by itself, give auto, cpu or cuda")
        os.environ.update(ENVIRONMENT)
        try:
            import ray
        except ModuleNotFoundError as error:
            raise InputError(
                f"engine ray needs a package that is not installed ({error}): {INSTALL}"
            ) from error
        own = {"include_dashboard": False, "object_store_memory": OBJECTS} if self.address == LOCAL else {}
        try:
            ray.init(
                address=self.address,
                namespace="framepack",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **own,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InputError(
                f"no Ray at '{self.address}' ({first_line(error)}): start one with 'ray start --head', or "
                f"give --ray-address {LOCAL}"
            ) from error
        try:
            self.config.data.mkdir(parents=True, exist_ok=True)
            self._fit(device)
        except BaseException:
            ray.shutdown()
            raise
        self._thread.start()

    def close(self) -> None:
        """Have all workers give their jobs back, and end; those that do not in time are killed."""
        import ray

        self._end.set()
        self._thread.join()
        at_work = self._known()
        for hired in self._hired:
            hired.actor.end.remote()
        waited = [hired.ended for hired in self._hired if hired.name in at_work]
        if waited:
            ray.wait(waited, num_returns=len(waited), timeout=GRACE)
        for hired in list(self._hired):
            ray.kill(hired.actor)
            self._buried(hired)
        ray.shutdown()

    def _fit(self, device: str) -> None:
        """What an actor takes of a machine, and how many there may be."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        hosts = {node["NodeManagerHostname"] for node in nodes}
        if hosts - {socket.gethostname()} and self.config.store.startswith("sqlite"):
            raise InputError(
                "the job store is a file of this machine, and Ray's cluster has others: "
                "give --store postgresql+psycopg://HOST/NAME"
            )
        self._needs, threads, fit = placed([node["Resources"] for node in nodes], device, self.config.threads)
        self.config = replace(self.config, threads=threads)
        if not fit and self.most is None:
            raise InputError(
                f"no machine of Ray's cluster has {threads} cores: give fewer --threads, or "
                "--max-workers where the cluster can grow"
            )
        self.most = max(self.least, fit if self.most is None else self.most)

    def _watch(self) -> None:
        while not self._end.is_set():
            try:
                self._look()
            except SQLAlchemyError as error:
                log.warning("the job store does not answer: %s", first_line(error))
            self._end.wait(LOOK)

    def _look(self) -> None:
        self._collect()
        if time.monotonic() < self._not_before:
            return
        counts = self.store.counts()
        work = counts[Status.QUEUED] + counts[Status.RUNNING]
        assert self.most is not None
        for _ in range(min(self.most, max(self.least, work)) - len(self._hired)):
            self._hire()

    def _hire(self) -> None:
        import ray

        name, stays = worker_name(), sum(hired.stays for hired in self._hired) < self.least
        # One call works, the other one ends it.
        actor = ray.remote(RayWorker).options(max_concurrency=2, **self._needs).remote()
        idle = float("inf") if stays else self.idle
        ended = actor.work.remote(self.config, name, self.config.devices[0], idle)
        self._hired.append(_Hired(name, actor, ended, time.monotonic(), stays))

    def _collect(self) -> None:
        """Let go of actors that have ended, by themselves or otherwise."""
        import ray

        by_ref = {hired.ended: hired for hired in self._hired}
        if not by_ref:
            return
        ended, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        for ref in ended:
            hired = by_ref[ref]
            try:
                ray.get(ref)
                self._wait = 0.0
            except (ray.exceptions.RayError, FramePackError) as error:
                log.warning("worker %s ended: %s", hired.name, _reason(error))
                soon = time.monotonic() - hired.begun < SOON
                self._wait = min(LATEST, 2 * self._wait + 1) if soon else 0.0
                self._not_before = time.monotonic() + self._wait
            ray.kill(hired.actor)  # of a machine that is only out of reach, too
            self._buried(hired)

    def _buried(self, hired: _Hired) -> None:
        """Have the store know that it is gone: its job is free at once."""
        try:
            self.store.dead(hired.name)
        except SQLAlchemyError:
            log.warning(
                "the job store does not answer: the job of %s is free when its lease ends", hired.name
            )
        self._hired.remove(hired)

    def _known(self) -> set[str]:
        """Names of workers that have begun."""
        try:
            return set(self.store.workers())
        except SQLAlchemyError:
            return set()


def placed(
    nodes: Sequence[Mapping[str, float]], device: str, threads: int | None
) -> tuple[dict[str, float], int | None, int]:
    """What an actor takes of a machine, its threads, and how many actors there is room for.

    Args:
        nodes: resources of each machine, ``CPU`` and ``GPU`` among them.
    """
    gpus = 0 if device == "cpu" else sum(int(node.get("GPU", 0)) for node in nodes)
    if gpus:
        return {"num_gpus": 1, "num_cpus": 1}, threads, gpus
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    # One number for all, so that the sums of all workers round alike.
    threads = threads or min(cores, default=1)
    return {"num_gpus": 0, "num_cpus": threads}, threads, sum(each // threads for each in cores)


def _reason(error: BaseException) -> str:
    """Ray puts a trace before what was raised in an actor."""
    cause = getattr(error, "cause", None)
    return first_line(cause if isinstance(cause, BaseException) else error)
