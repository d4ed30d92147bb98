"""A job: one video that somebody asked the service for, and what becomes of it."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from framepack.errors import FramePackError, InputError

LEASE = 15.0
"""Seconds without a word after which a worker is taken for dead."""


class Status(StrEnum):
    """OpenAI's four, and two of our own: ``paused`` and ``cancelled``."""

    QUEUED = "queued"
    RUNNING = "in_progress"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Wish(StrEnum):
    """What somebody wants of a job that a worker has; the worker reads it and obeys."""

    PAUSE = "pause"
    CANCEL = "cancel"
    DELETE = "delete"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the store.

    Attributes:
        id: ``video_`` and letters that sort by time. client: whose it is.
        model: name under which the service has it. prompt: for people. asked: all that was asked for, see
            ``asked.py``.
        parent: job whose run this one begins with. redo: the section of it to make anew, see ``Redo``.
        position: jobs are taken in this order. ready: time before which none takes it.
        created, started, ended: seconds since 1970, by the store's clock.
        progress: how far it is, see ``progress.py``. error: ``code`` and ``message``, where it failed.
        worker, leased_until, attempt: who has it, how long without a word, and how often it was taken.
        deaths: workers that ended over it since it last came further.
        size: bytes on disk, where it has ended.
        version: counts up with every change that people see.
    """

    id: str
    client: str
    status: Status
    wish: Wish | None
    model: str
    prompt: str
    asked: dict[str, Any]
    parent: str | None
    redo: dict[str, Any] | None
    position: float
    ready: float
    created: float
    started: float | None
    ended: float | None
    progress: dict[str, Any]
    error: dict[str, str] | None
    worker: str | None
    leased_until: float | None
    attempt: int
    deaths: int
    size: int
    version: int


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What is to become a job."""

    client: str
    model: str
    prompt: str
    asked: dict[str, Any]
    parent: str | None = None
    redo: dict[str, Any] | None = None
    id: str = field(default_factory=lambda: new_id())


@dataclass(frozen=True)
class Lease:
    """The right to work on a job: ends when it is not renewed in time, or when somebody else has taken it."""

    job: str
    worker: str
    attempt: int


class LeaseLost(BaseException):
    """The job is no longer this worker's. Not an Exception, so that nothing on the way swallows it."""


class NoSuchJob(InputError):
    """An id that no job has, or that of another client."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no video '{name[:60]}': list yours with GET /v1/videos")


class WrongState(InputError):
    """Something asked of a job that its status does not allow."""


class QueueFull(FramePackError):
    """More jobs than one client may have waiting."""


def new_id() -> str:
    """An id that no one can guess; later ones sort after earlier ones."""
    return f"video_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"


def worker_name() -> str:
    """A name that no other worker has or had."""
    return f"{socket.gethostname()[:80]}-{secrets.token_hex(4)}"
