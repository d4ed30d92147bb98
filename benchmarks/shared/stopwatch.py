"""Where the time of a call goes, by functions that are watched for its duration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from unittest import mock

REST = "rest"


@dataclass(frozen=True)
class Spent:
    """Seconds of wall time, and of all threads of this process."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


@dataclass
class Stopwatch:
    """Time by stage. Each moment counts once: for the innermost stage that is under way, or for ``REST``."""

    stages: dict[str, Spent] = field(default_factory=dict)
    _under_way: list[str] = field(default_factory=lambda: [REST])
    _since: tuple[float, float] = (0.0, 0.0)

    def __enter__(self) -> Stopwatch:
        self._since = _now()
        return self

    def __exit__(self, *error: object) -> None:
        self._count()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._count()
        self._under_way.append(name)
        try:
            yield
        finally:
            self._count()
            self._under_way.pop()

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The same function, its time on the watch."""

        @wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            with self.stage(stage):
                return function(*args, **named)

        return call

    @contextmanager
    def watching(self, *watched: tuple[Any, str, str]) -> Iterator[None]:
        """While it lasts, attributes of owners count for stages: (owner, attribute, stage)."""
        with ExitStack() as stack:
            for owner, name, stage in watched:
                stack.enter_context(mock.patch.object(owner, name, self.timed(getattr(owner, name), stage)))
            yield

    def _count(self) -> None:
        now, stage = _now(), self._under_way[-1]
        passed = Spent(now[0] - self._since[0], now[1] - self._since[1])
        self.stages[stage] = self.stages.get(stage, Spent()) + passed
        self._since = now


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
