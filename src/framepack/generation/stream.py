"""Turn work that calls back into an iterator of events."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from framepack.generation.events import Event

Emit = Callable[[Event], None]


class Stopped(BaseException):
    """Raised in work whose events nobody wants any more; not an Exception, so that nothing swallows it."""


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def stream(work: Callable[[Emit], None]) -> Iterator[Event]:
    """Run ``work`` in a thread and yield what it emits, one event ahead at most.

    Closing the iterator (or an interrupt in the consumer) stops the work at its next event, and waits
    for that; an error in the work is raised here.
    """
    events: queue.Queue[object] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                return events.put(item, timeout=0.1)
            except queue.Full:
                continue
        raise Stopped

    def body() -> None:
        try:
            work(put)
            put(_END)
        except Stopped:
            pass
        except BaseException as error:
            if not stopped.is_set():
                put(_Failed(error))

    thread = threading.Thread(target=body, name="framepack-run", daemon=True)
    thread.start()
    try:
        while (item := events.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
