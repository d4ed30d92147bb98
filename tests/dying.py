"""A process that dies between two system calls that change a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from framepack.generation import manifest


class Killed(BaseException):
    """What stands for the end of the process; nothing catches it but the test."""


def die_after(limit: int, patch: pytest.MonkeyPatch) -> None:
    """The first ``limit`` calls come through, of any thread; no later one does."""
    calls = 0

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise Killed
            return real(*args, **kwargs)

        patch.setattr(owner, name, call)

    for owner, names in ((manifest.os, ("write", "fsync")), (Path, ("replace", "mkdir"))):
        for name in names:
            wrap(owner, name)
