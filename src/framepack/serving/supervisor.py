"""The worker processes of one service on this machine: started, watched, started again."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess

from sqlalchemy.exc import SQLAlchemyError

from framepack.serving.config import ServiceConfig
from framepack.serving.jobs import worker_name
from framepack.serving.process import begin
from framepack.serving.store import JobStore

log = logging.getLogger("framepack.supervisor")

LOOK = 0.2
"""Seconds between two looks at the workers."""
SOON = 5.0
"""A worker that ends within so many seconds is not started again at once."""
LATEST = 30.0
GRACE = 10.0
"""Seconds that workers have to reach the end of a step, when the service ends."""


@dataclass
class _Slot:
    """Where one worker after the other works."""

    device: str
    process: SpawnProcess | None = None
    name: str = ""
    begun: float = 0.0
    wait: float = 0.0
    """Seconds until the next one is started, where the last one ended soon."""
    ended: float = 0.0


class Supervisor:
    """Keeps ``count`` workers alive until it is closed."""

    def __init__(self, store: JobStore, config: ServiceConfig, count: int) -> None:
        self.store, self.config = store, config
        devices = config.devices
        self._slots = [_Slot(devices[number % len(devices)]) for number in range(count)]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def processes(self) -> list[int]:
        """Numbers of those that are alive."""
        alive = [slot.process for slot in self._slots if slot.process is not None and slot.process.is_alive()]
        return [process.pid for process in alive if process.pid is not None]

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Have all workers give their jobs back, and end; those that do not in time are killed."""
        self._end.set()
        self._thread.join()
        running = [slot for slot in self._slots if slot.process is not None]
        for slot in running:
            assert slot.process is not None
            slot.process.terminate()
        until = time.monotonic() + GRACE
        for slot in running:
            assert slot.process is not None
            slot.process.join(max(0.0, until - time.monotonic()))
            if slot.process.is_alive():
                slot.process.kill()
                slot.process.join()
            self._buried(slot)

    def _watch(self) -> None:
        while not self._end.is_set():
            for slot in self._slots:
                self._look(slot)
            self._end.wait(LOOK)

    def _look(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.process is not None and not slot.process.is_alive():
            log.warning("worker %s ended with %s", slot.name, slot.process.exitcode)
            if not self._buried(slot):
                return
            slot.wait = min(LATEST, 2 * slot.wait + 1) if now - slot.begun < SOON else 0.0
            slot.ended = now
        if slot.process is None and now >= slot.ended + slot.wait:
            slot.name = worker_name()
            slot.process = multiprocessing.get_context("spawn").Process(
                target=begin, args=(self.config, slot.name, slot.device), name=slot.name, daemon=True
            )
            slot.process.start()
            slot.begun = now

    def _buried(self, slot: _Slot) -> bool:
        """Have the store know that it is gone. False: the store does not answer, so it is tried again."""
        try:
            self.store.dead(slot.name)
        except SQLAlchemyError:
            return False
        slot.process = None
        return True
