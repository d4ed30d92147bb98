"""Carry a suite out: tasks in an order that keeps all workers busy, each begun when what it needs is there.

On a CPU there is a worker a core, of one thread each; on GPUs one a device.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any, Protocol

from framepack.errors import FramePackError
from framepack.evaluation.folder import TRAINED, row_folder
from framepack.evaluation.gather import is_told
from framepack.evaluation.suite import Suite
from framepack.evaluation.worker import Task, Worker
from framepack.generation.helper import end_with_parent

AT_ONCE = 4
"""Videos of one task."""


class Watcher(Protocol):
    """Who is told how a suite goes on."""

    def begun(self, worker: int, task: Task) -> None: ...
    def progress(self, worker: int, task: Task, done: int, total: int) -> None: ...
    def finished(self, worker: int, task: Task) -> None: ...


@dataclass
class Agenda:
    """What is to be done: tasks by the task that they wait for.

    ready: in the order in which they are to begin.
    """

    ready: list[Task] = field(default_factory=list)
    waiting: dict[Task, list[Task]] = field(default_factory=dict)
    encoding: set[Task] = field(default_factory=set)
    after_encoding: list[Task] = field(default_factory=list)

    def done(self, task: Task) -> None:
        """Move what waited for a task to where it can begin; videos come before the next training."""
        if task in self.encoding:
            self.encoding.discard(task)
            if not self.encoding:
                self.ready += self.after_encoding
                self.after_encoding = []
        self.ready[:0] = self.waiting.pop(task, [])

    @property
    def left(self) -> int:
        later = sum(len(tasks) for tasks in self.waiting.values())
        return len(self.ready) + later + len(self.after_encoding)


def agenda(suite: Suite, out: Path, workers: int) -> Agenda:
    """All tasks of a suite of which something is missing."""
    found = Agenda()
    weights = {row.name: row.weights or row.name for row in suite.rows} if suite.trains else {}
    waiting: dict[str, list[Task]] = {}
    for row, of, names in suite.videos():
        missing = [number for number, name in enumerate(names) if not is_told(suite, out, row, of, name)]
        chunks = (missing[start : start + AT_ONCE] for start in range(0, len(missing), AT_ONCE))
        tasks = [Task("make", row, of, tuple(chunk)) for chunk in chunks]
        if row in weights:
            waiting.setdefault(weights[row], []).extend(tasks)
        else:
            found.ready += tasks
    for row, tasks in waiting.items():
        if (row_folder(out, row) / "train" / TRAINED).exists():
            found.ready += tasks
        elif tasks:
            found.waiting[Task("train", row)] = tasks
    if found.waiting:
        found.after_encoding = list(found.waiting)
        encoding = [Task("encode", numbers=(part, workers)) for part in range(workers)]
        found.encoding, found.ready = set(encoding), [*encoding, *found.ready]
    return found


def carry_out(suite: Suite, out: Path, devices: Sequence[str], watcher: Watcher) -> None:
    """Do what is missing of a suite. Stopped at any time, it goes on from where it was when called again.

    Args:
        devices: one for each worker.

    Raises:
        FramePackError: what a task raised, with its row; the others were stopped.
    """
    todo = agenda(suite, out, len(devices))
    if not todo.left:
        return
    workers = _workers(suite, out, devices) if len(devices) > 1 else _alone(suite, out, devices[0], watcher)
    with workers as (hand_out, wait):
        busy: dict[int, Task] = {}
        idle = list(range(len(devices)))
        while todo.left or busy:
            while idle and todo.ready:
                worker, task = idle.pop(), todo.ready.pop(0)
                busy[worker] = task
                watcher.begun(worker, task)
                hand_out(worker, task)
            worker, what, told = wait()
            if what == "progress":
                watcher.progress(worker, busy[worker], *told)
            elif what == "failed":
                raise FramePackError(f"row '{busy[worker].row}', {busy[worker].kind}: {told}")
            else:
                task = busy.pop(worker)
                idle.append(worker)
                todo.done(task)
                watcher.finished(worker, task)


HandOut = Callable[[int, Task], None]
Wait = Callable[[], tuple[int, str, Any]]
"""Until something is told: (worker, "progress" | "done" | "failed", what)."""


@contextmanager
def _alone(suite: Suite, out: Path, device: str, watcher: Watcher) -> Iterator[tuple[HandOut, Wait]]:
    """One worker, in this process."""
    worker = Worker(suite, out, device)
    inbox: list[Task] = []

    def wait() -> tuple[int, str, Any]:
        task = inbox.pop()
        worker.do(task, lambda done, total: watcher.progress(0, task, done, total))
        return 0, "done", None

    yield lambda _, task: inbox.append(task), wait


@contextmanager
def _workers(suite: Suite, out: Path, devices: Sequence[str]) -> Iterator[tuple[HandOut, Wait]]:
    """Processes that wait for tasks; their threads are limited before PyTorch is loaded in them."""
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    inboxes = [context.Queue() for _ in devices]
    processes = []
    with _one_thread(devices):
        for number, (device, inbox) in enumerate(zip(devices, inboxes, strict=True)):
            process = context.Process(
                target=_serve, args=(number, suite, out, device, inbox, told), daemon=True
            )
            process.start()
            processes.append(process)

    def wait() -> tuple[int, str, Any]:
        while True:
            try:
                return told.get(timeout=1.0)
            except Empty:
                for number, process in enumerate(processes):
                    if not process.is_alive():
                        return number, "failed", f"its process ended with code {process.exitcode}"

    try:
        yield lambda worker, task: inboxes[worker].put(task), wait
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextmanager
def _one_thread(devices: Sequence[str]) -> Iterator[None]:
    """Several workers on a CPU share its cores, so that each has one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    if all(device == "cpu" for device in devices):
        os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _serve(number: int, suite: Suite, out: Path, device: str, inbox: Any, told: Any) -> None:
    """One worker: tasks until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    end_with_parent()
    worker = Worker(suite, out, device)
    while True:
        task = inbox.get()
        try:
            worker.do(task, lambda done, total: told.put((number, "progress", (done, total))))
        except FramePackError as error:
            told.put((number, "failed", str(error)))
        except Exception:
            told.put((number, "failed", traceback.format_exc()))
        else:
            told.put((number, "done", None))
