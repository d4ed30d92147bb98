"""A worker's hold on its job: the lease is renewed beside the work, and what people wish is heard."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from framepack.serving.jobs import Lease, LeaseLost, Wish
from framepack.serving.progress import Progress
from framepack.serving.store import JobStore

T = TypeVar("T")

TOLD = 0.5
"""Seconds between two notes of progress at least."""
BEATS = 4
"""Renewals within the time of a lease."""
PATIENCE = 0.5
"""Seconds until a store that does not answer is asked again."""


class Stopped(BaseException):
    """The work is to stop here: ``wish`` of somebody's, or None: the worker itself ends. Not an Exception, so
    that nothing on the way swallows it."""

    def __init__(self, wish: Wish | None) -> None:
        self.wish = wish


class Keeper:
    """Keeps a lease in a thread of its own, for loading a model or a long step may take minutes.

    Args:
        stop: whether the worker itself is to end.
    """

    def __init__(self, store: JobStore, lease: Lease, stop: Callable[[], bool]) -> None:
        self.store, self.lease, self.stop = store, lease, stop
        self._lock = threading.Lock()
        self._told: Progress | None = None
        self._further = False
        self._wish: Wish | None = None
        self._lost = False
        self._wake = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._wake.set()
        self._thread.join()

    def tell(self, progress: Progress, *, further: bool = False) -> None:
        """Have the store know how far the job is, soon. further: a section more is on disk."""
        with self._lock:
            self._told = progress
            self._further = self._further or further
        self._wake.set()

    def check(self) -> None:
        """Raises Stopped or LeaseLost, where the work is not to go on."""
        if self._lost:
            raise LeaseLost(self.lease.job)
        if self._wish is not None or self.stop():
            raise Stopped(self._wish)

    def _keep(self) -> None:
        between = self.store.lease_seconds / BEATS
        heard = time.monotonic()
        while not self._end.is_set():
            with self._lock:
                told, further = self._told, self._further
                self._told, self._further = None, False
            try:
                self._wish = self.store.renew(
                    self.lease, None if told is None else told.to_json(), further=further
                )
                heard = time.monotonic()
            except LeaseLost:
                self._lost = True
                return
            except SQLAlchemyError:
                # The database may come back in time; after that, others may have the job.
                if time.monotonic() - heard > self.store.lease_seconds:
                    self._lost = True
                    return
                with self._lock:
                    self._told, self._further = self._told or told, self._further or further
                self._end.wait(PATIENCE)
                continue
            self._end.wait(TOLD)
            self._wake.wait(max(0.0, between - TOLD))
            self._wake.clear()


def insist(what: Callable[[], T], *, within: float) -> T:
    """The result of asking the store, over and over while it does not answer, for so many seconds."""
    begun = time.monotonic()
    while True:
        try:
            return what()
        except SQLAlchemyError:
            if time.monotonic() - begun > within:
                raise
            time.sleep(PATIENCE)
