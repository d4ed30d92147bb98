"""One process that carries out jobs: it leases one, works on it, and ends it; then the next.

What it makes lies in the job's folder, section by section. If it dies, whoever leases the job next goes on
from the last section that is there.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from framepack.errors import (
    FramePackError,
    InputError,
    ModelError,
    OutOfMemoryError,
    OutputError,
    RunConflictError,
)
from framepack.generation.events import Event, SectionFinished
from framepack.generation.fork import edited
from framepack.generation.helper import end_with_parent
from framepack.generation.prepare import prepare
from framepack.generation.run import PreparedRun
from framepack.models.bundle import Bundle
from framepack.serving.asked import Asked, Offer
from framepack.serving.config import ServiceConfig, lora_files
from framepack.serving.jobs import Job, Lease, LeaseLost, Status, Wish, worker_name
from framepack.serving.keeper import Keeper, Stopped, T, insist
from framepack.serving.places import JobFolder, ServiceFolder
from framepack.serving.progress import Follower, Progress
from framepack.serving.store import JobStore
from framepack.video.clips import track_of

log = logging.getLogger("framepack.worker")

POLL = 0.5
"""Seconds between two looks for work."""
FIRST = "500"
"""Where memory runs out, workers are ended before the server: what they take, others have sent."""
CODES: tuple[tuple[type[FramePackError], str], ...] = (
    (OutOfMemoryError, "out_of_memory"),
    (InputError, "invalid_request"),
    (ModelError, "model_error"),
    (OutputError, "storage_error"),
)
"""Of errors, by their kind, the first that fits."""


@dataclass(frozen=True)
class _Loaded:
    """A model in memory, and what it was loaded by."""

    offer: Offer
    bundle: Bundle


class Worker:
    """Carries out the jobs of a service.

    Args:
        name: of the worker, another one for each process that there ever is. device: ``auto`` or PyTorch's.
        stop: whether it is to end; asked between jobs and at each event of a run.
    """

    def __init__(
        self,
        store: JobStore,
        config: ServiceConfig,
        name: str,
        device: str = "auto",
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.store, self.config, self.name, self.device, self.stop = store, config, name, device, stop
        self.places = ServiceFolder(config.data)
        self._loaded: _Loaded | None = None

    def run(self, idle: float = float("inf")) -> None:
        """Work until it is to stop, or until there was no work for ``idle`` seconds."""
        greeted, busy = 0.0, time.monotonic()
        while not self.stop() and time.monotonic() - busy < idle:
            if time.monotonic() - greeted > self.store.lease_seconds / 3:
                insist(lambda: self.store.greet(self.name, self.about()), within=float("inf"))
                greeted = time.monotonic()
            if self.once():
                busy = time.monotonic()
            else:
                time.sleep(POLL)

    def once(self) -> bool:
        """Take one job and work on it. False: there was none."""
        taken = insist(lambda: self.store.lease(self.name), within=float("inf"))
        if taken is None:
            return False
        lease, job = taken
        log.info("%s begun, attempt %d", job.id, job.attempt)
        try:
            self._work(lease, job)
        except LeaseLost:
            log.warning("%s is another worker's now", job.id)
        return True

    def about(self) -> dict[str, object]:
        """What people may know of it."""
        return {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "threads": torch.get_num_threads(),
            "niceness": os.nice(0),
            "device": str(self._loaded.bundle.device) if self._loaded else None,
            "models": list(self.config.offers),
        }

    def _work(self, lease: Lease, job: Job) -> None:
        """Raises LeaseLost."""
        folder = self.places.job(job.id)
        follower = Follower()
        try:
            with Keeper(self.store, lease, self.stop) as keeper:
                keeper.tell(follower.now)
                run = self._prepared(job, folder)
                notes = tuple(map(self.config.unplaced, run.warnings))
                follower = Follower(notes, f"{run.config.width}x{run.config.height}")
                run.carry_out(lambda event: _see(event, follower, folder, keeper))
        except Stopped as stopped:
            self._stopped(lease, folder, follower.now, stopped.wish)
        except RunConflictError as error:
            # Whoever was taken for dead is not, and still has the folder: later.
            log.warning("%s: %s", job.id, error)
            self._let_go(folder, lambda: self.store.give_back(lease, after=self.store.lease_seconds))
        except FramePackError as error:
            code = next((code for kind, code in CODES if isinstance(error, kind)), "failed")
            log.info("%s failed: %s", job.id, error)
            self._fail(lease, folder, follower.now, code, self.config.unplaced(str(error)))
        except Exception as error:
            log.exception("%s failed", job.id)
            self._loaded = None  # whatever state it is in
            told = f"a fault of the program ({type(error).__name__}): the service's log says more"
            self._fail(lease, folder, follower.now, "internal_error", told)
        else:
            log.info("%s completed", job.id)
            told_last, size = follower.now.to_json(), folder.size
            self._let_go(folder, lambda: self.store.finish(lease, Status.COMPLETED, told_last, size=size))

    def _prepared(self, job: Job, folder: JobFolder) -> PreparedRun:
        asked = Asked.from_json(job.asked)
        offered = asked.request(folder.path, self.config.offers, lora_files(self.config.loras))
        request = replace(offered, out=folder.video, workdir=folder.run, device=self.device)
        for clip in (request.from_clip, request.to_clip):
            if clip is not None:
                self._check_clip(clip)
        offer = self.config.offers[asked.model]
        held = self._loaded.bundle if self._loaded is not None and self._loaded.offer == offer else None
        if held is None:
            self._loaded = None  # before the next one is loaded: two may not fit
        try:
            run = prepare(request, held)
        except RunConflictError:
            # Begun on another device or in another precision: nothing of that can be gone on with here.
            folder.begin_anew()
            run = prepare(request, held)
        self._loaded = _Loaded(offer, run.bundle)
        if job.redo is not None and not edited(folder.run):
            redo = job.redo
            run.redo(redo["section"], redo.get("prompt"), seed=redo.get("seed"), alone=redo["alone"])
        return run

    def _check_clip(self, clip: Path) -> None:
        """Refuse a clip that is too long to be read whole. Raises InputError."""
        track = track_of(clip)
        seconds = float(track.stop - track.start)
        if seconds > self.config.seconds:
            raise InputError(
                f"clip '{clip.name}' has {seconds:g} s: this service takes at most {self.config.seconds:g} s"
            )

    def _stopped(self, lease: Lease, folder: JobFolder, progress: Progress, wish: Wish | None) -> None:
        log.info("%s stopped: %s", lease.job, wish or "the worker ends")
        if wish is Wish.CANCEL:
            told = progress.to_json()
            self._let_go(folder, lambda: self.store.finish(lease, Status.CANCELLED, told, size=folder.size))
        elif wish is Wish.DELETE:
            self._insist(lambda: self.store.drop(lease))
            folder.remove()
        else:
            status = Status.QUEUED if wish is None else Status.PAUSED
            self._let_go(folder, lambda: self.store.give_back(lease, status))

    def _fail(self, lease: Lease, folder: JobFolder, progress: Progress, code: str, message: str) -> None:
        error, told = {"code": code, "message": message}, progress.to_json()
        self._let_go(
            folder, lambda: self.store.finish(lease, Status.FAILED, told, error=error, size=folder.size)
        )

    def _let_go(self, folder: JobFolder, how: Callable[[], bool]) -> None:
        """End or give back a job; one that was deleted just now leaves nothing."""
        if not self._insist(how):
            folder.remove()

    def _insist(self, what: Callable[[], T]) -> T:
        """The lease runs out meanwhile, and then the job is done again by another, from what is on disk."""
        return insist(what, within=4 * self.store.lease_seconds)


def _see(event: Event, follower: Follower, folder: JobFolder, keeper: Keeper) -> None:
    follower.see(event)
    further = isinstance(event, SectionFinished)
    if isinstance(event, SectionFinished):
        place = folder.preview(event.section)
        if not (event.cached and place.exists()):
            _keep(event.preview, place)
    keeper.tell(follower.now, further=further)
    keeper.check()


def _keep(preview: np.ndarray, place: Path) -> None:
    """Whole or not at all: it may be looked at meanwhile, and this process may be killed."""
    place.parent.mkdir(exist_ok=True)
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    Image.fromarray(preview).save(part, "PNG")
    part.replace(place)


def work(config: ServiceConfig, name: str, device: str) -> None:
    """A worker process of a service, until it is told to end or the service is gone."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    os.nice(config.niceness)
    with suppress(OSError):  # Linux alone has it
        Path("/proc/self/oom_score_adj").write_text(FIRST)
    _serve(config, name, device, signal.SIGTERM)


def standing(config: ServiceConfig) -> None:
    """A worker by itself, until it is told to end.

    Raises:
        FramePackError: its store cannot be opened.
    """
    _serve(config, worker_name(), config.devices[0], signal.SIGTERM, signal.SIGINT)


def _serve(config: ServiceConfig, name: str, device: str, *ending: signal.Signals) -> None:
    ended: list[int] = []
    for number in ending:
        signal.signal(number, lambda number, frame: ended.append(number))
    labour(config, name, device, lambda: bool(ended))


def labour(
    config: ServiceConfig, name: str, device: str, stop: Callable[[], bool], idle: float = float("inf")
) -> None:
    """One worker's life in this process, see ``Worker``. Raises FramePackError: no store."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", filename=config.log)
    log.setLevel(logging.INFO)
    store = JobStore(config.store, lease=config.lease)
    try:
        Worker(store, config, name, device, stop).run(idle)
    finally:
        store.close()
