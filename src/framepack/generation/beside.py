"""Work beside a run, in one thread: a section becomes pixels and packets while the next one is sampled.

On CUDA the thread has a stream of its own, so that its kernels and those of sampling interleave. What the
work tells is handed on by the run's own thread: whoever follows a run hears all of it from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch

from framepack.generation.events import Event
from framepack.generation.stream import Emit, Stopped


class Beside:
    """One piece of work at a time beside the caller's own. There is no thread before the first one.

    Args:
        emit: told, in the caller's thread, of what the work tells.
        device: that it computes on.
    """

    def __init__(self, emit: Emit, device: torch.device) -> None:
        self._emit = emit
        self._device = device
        self._pool = ThreadPoolExecutor(1, "framepack-beside")
        self._stream: torch.cuda.Stream | None = None
        self._work: Future[None] | None = None
        self._told: SimpleQueue[Event | None] = SimpleQueue()  # None: the work is over
        self._stopped = threading.Event()

    def begin(self, work: Callable[[Emit], None]) -> None:
        """Start a piece of work; the one before has been waited for."""
        assert self._work is None, "one piece of work at a time"
        if self._device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(self._device)
            # After what the caller has asked for so far.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._work = self._pool.submit(self._carry_out, work)

    def _carry_out(self, work: Callable[[Emit], None]) -> None:
        try:
            with torch.cuda.stream(self._stream):  # None changes nothing
                work(self._put)
        finally:
            self._told.put(None)

    def _put(self, event: Event) -> None:
        if self._stopped.is_set():
            raise Stopped
        self._told.put(event)

    @property
    def busy(self) -> bool:
        """Whether there is work that has not been waited for."""
        return self._work is not None

    def tell(self) -> None:
        """Hand on what the work has told so far."""
        while not self._told.empty():
            event = self._told.get()
            if event is None:
                self._told.put(None)  # the last of all, for `wait`
                return
            self._emit(event)

    def wait(self) -> None:
        """Wait for the work, if there is any, and hand on what it tells. Raises what it raised."""
        if self._work is None:
            return
        while (event := self._told.get()) is not None:
            self._emit(event)
        work, self._work = self._work, None
        work.result()

    def close(self) -> None:
        """Stop the work when it next tells something, and end the thread; nothing is begun after it."""
        self._stopped.set()
        self._pool.shutdown()
        self._work, self._told = None, SimpleQueue()
