"""Videos of a list, made by the jobs and workers of a service that nobody has to serve.

    {out}/001-a-red-heart.mp4, .json    results, by the rows of the list
    {out}/batch.json                    which job each of those names stands for
    {out}/dropped/                      videos of rows that are no longer in the list
    {out}/jobs.sqlite, jobs/            a service's folder, see places.py
    {out}/workers.log                   what workers say

A row's job is named by the hash of what it asks for. So the same command goes on where it was, and after a
change of the list only rows that ask for something new are made.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from framepack.errors import InputError, OutputError
from framepack.generation.hashing import hash_file, hash_json
from framepack.generation.manifest import write_file
from framepack.serving.asked import Asked
from framepack.serving.config import ServiceConfig
from framepack.serving.engines import Engine
from framepack.serving.form import Received
from framepack.serving.jobs import ENDED, Job, NewJob, NoSuchJob, Status, Wish
from framepack.serving.keeper import insist
from framepack.serving.places import JobFolder
from framepack.serving.rows import Row, read_rows
from framepack.serving.service import Limits, Service
from framepack.serving.store import JobStore
from framepack.video.images import MAX_PIXELS

CLIENT = "batch"
LIST, LOCK, DROPPED = "batch.json", "batch.lock", "dropped"
SLUG = 40
"""Characters of a prompt in the name of its video."""
LOOK = 0.5
"""Seconds between two looks at the jobs."""
PATIENCE = 300.0
"""Seconds that a store may be away."""
LIMITS = Limits(seconds=float("inf"), picture=MAX_PIXELS)
"""Those of other people's requests are not for one's own."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A row with the seed it gets, the id of its job, and the name of its results."""

    row: Row
    seed: int
    id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a list comes to beside what was there: names of videos.

    new: not there before. kept: begun, or failed, before; done: completed before. dropped: no longer in the
    list.
    """

    new: tuple[str, ...]
    kept: tuple[str, ...]
    done: tuple[str, ...]
    dropped: tuple[str, ...]


def read_batch(path: Path, defaults: Mapping[str, Any], config: ServiceConfig, seed: int) -> list[Video]:
    """The videos of a list, each of which can be made; nothing is written.

    Args:
        defaults: fields of rows that do not say otherwise. seed: see ``videos_of``.

    Raises:
        InputError: the first fault, with its line.
    """
    rows = read_rows(path, defaults)
    try:
        videos = videos_of(rows, config, seed)
        check(videos, config)
    except InputError as error:
        raise InputError(f"'{path}' {error}") from error
    return videos


def videos_of(rows: Sequence[Row], config: ServiceConfig, seed: int) -> list[Video]:
    """The videos that rows ask for.

    Rows without a seed get ``seed``; of rows that are alike, each gets one more than the one before. So a
    row's video does not depend on where it stands.

    Raises:
        InputError: a file that cannot be read, or two rows that ask for the same.
    """
    digits = max(3, len(str(len(rows))))
    alike: dict[str, int] = {}
    lines: dict[str, int] = {}
    found = []
    for number, row in enumerate(rows, start=1):
        key = _key(row, config)
        own = row.video.seed
        if "seed" not in row.video.model_fields_set:
            own = seed + alike.get(key, 0)
            alike[key] = alike.get(key, 0) + 1
        name = "video_" + hash_json({"of": key, "seed": own})
        if name in lines:
            raise InputError(
                f"line {row.line} asks for the same as line {lines[name]}: give it another seed, or none"
            )
        lines[name] = row.line
        found.append(Video(row=row, seed=own, id=name, name=f"{number:0{digits}d}-{_slug(row.video.prompt)}"))
    return found


def _key(row: Row, config: ServiceConfig) -> str:
    """Hash of all that a row asks for, its seed apart."""
    fields = row.video.model_dump(exclude_defaults=True, exclude={"seed", "model"})
    model = row.video.model or next(iter(config.offers))
    offer = config.offers.get(model)
    # How a model is fitted into memory may change after it ran out.
    loaded = None if offer is None else [offer.model, list(offer.parts), offer.dtype]
    try:
        files = {name: hash_file(file) for name, file in row.files.items()}
    except OSError as error:
        raise InputError(
            f"line {row.line}: '{error.filename}' cannot be read ({error.strerror}): check the path"
        ) from error
    return hash_json({"fields": fields, "model": [model, loaded], "files": files})


def _slug(prompt: str) -> str:
    words = re.sub(r"[\W_]+", "-", re.sub(r"\[[^\]:]*:", " ", prompt.lower())).strip("-")
    short = (
        words[: SLUG + 1].rpartition("-")[0] if len(words) > SLUG and "-" in words[:SLUG] else words[:SLUG]
    )
    return short or "video"


def check(videos: Sequence[Video], config: ServiceConfig) -> None:
    """Refuse a list of which a video cannot be made; nothing is written.

    Raises:
        InputError: the first fault, with its line, and how many lines more have one.
    """
    faults = []
    store = JobStore("sqlite://")  # in memory: one on disk would be left behind by a list that is refused
    try:
        service = Service(store, config, LIMITS)
        for video in videos:
            with tempfile.TemporaryDirectory(prefix="framepack-batch-") as folder:
                try:
                    service.cost(_prepared(video, service, Path(folder))[0], Path(folder))
                except InputError as error:
                    faults.append(f"line {video.row.line}: {str(error).replace(f'{folder}/', '')}")
    finally:
        store.close()
    if faults:
        more = f"; {len(faults) - 1} more of {len(videos)} rows have faults" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}; nothing was begun")


def _prepared(video: Video, service: Service, folder: Path) -> tuple[Asked, Mapping[str, Path]]:
    """What a row asks for, and its files: pictures in a folder, clips where they are. Raises InputError."""
    row = video.row
    received = Received(row.video.model_copy(update={"seed": video.seed}), folder, dict(row.files))
    return received.asked(service), received.files


class Batch:
    """A list and its folder, which it has for itself until it is closed.

    Raises:
        OutputError: the folder is in use, or cannot be written. InputError, StoreError: so the store.
    """

    def __init__(self, videos: Sequence[Video], config: ServiceConfig, out: Path) -> None:
        self.out, self.videos = out, {video.id: video for video in videos}
        self._lock = _locked(out)
        try:
            self.service = Service(JobStore(config.store, lease=config.lease), config, LIMITS)
        except BaseException:
            os.close(self._lock)
            raise
        self.store = self.service.store
        self._open: set[str] = set()

    def close(self) -> None:
        self.store.close()
        os.close(self._lock)

    @property
    def waiting(self) -> int:
        """Videos that have not ended."""
        return len(self._open)

    def begin(self) -> Begun:
        """Queue what is not made yet, and put away what is no longer in the list.

        Raises:
            InputError: the store is another folder's. OutputError: a file of somebody else's at a result's
                place.
        """
        for job in self.store.queue():
            if not self._folder(job.id).path.is_dir():
                raise InputError(
                    f"the job store has videos whose files are not in '{self.out}': give each batch its own"
                )
        before = self._read_list()
        for video in self.videos.values():
            place = self.out / f"{video.name}.mp4"
            if place.exists() and video.name not in before:
                raise OutputError(f"'{place}' is no video of this batch: give another --out")
        listed = {video.name: video.id for video in self.videos.values()}
        self._put_away(before, listed)
        write_file(self.out / LIST, json.dumps(listed, indent=1, ensure_ascii=False).encode() + b"\n")
        known = {job.id: job for job in self._jobs()}
        for name in known.keys() - self.videos.keys():
            if known[name].status not in ENDED:
                self.store.wish(name, Wish.CANCEL)
        told: dict[str, list[str]] = {"new": [], "kept": [], "done": []}
        for video in self.videos.values():
            told[self._queued(video, known.get(video.id))].append(video.name)
        return Begun(
            new=tuple(told["new"]),
            kept=tuple(told["kept"]),
            done=tuple(told["done"]),
            dropped=tuple(name for name, job in before.items() if job not in self.videos),
        )

    def ended(self) -> list[tuple[Video, Job | None]]:
        """Videos that have ended since this was last asked, their results in place; None: a job that somebody
        has deleted."""
        unended = {job.id for job in self.store.queue()}
        found: list[tuple[Video, Job | None]] = []
        for name in sorted(self._open - unended, key=lambda name: self.videos[name].row.line):
            job: Job | None
            try:
                job = self.store.get(name)
            except NoSuchJob:
                job = None
            if job is not None and job.status is Status.COMPLETED:
                self._place(self.videos[name])
            self._open.discard(name)
            found.append((self.videos[name], job))
        return found

    def running(self) -> list[tuple[Video, Job]]:
        """What is being made now."""
        jobs = self.store.listed(CLIENT, statuses=[Status.RUNNING], newest_first=False)
        return [(self.videos[job.id], job) for job in jobs if job.id in self.videos]

    def _queued(self, video: Video, job: Job | None) -> str:
        """Have a video made, if it is not: which of ``Begun`` it is."""
        if job is not None and job.status is Status.COMPLETED and self._folder(video.id).video.is_file():
            self._place(video)
            return "done"
        self._open.add(video.id)
        if job is None:
            self._add(video)
            return "new"
        if job.status in ENDED:
            # Failed before, or not wanted for a while: what there is of it is gone on with.
            self.store.wish(video.id, Wish.DELETE)
            self._add(video)
        elif job.status is Status.PAUSED or job.wish is not None:
            self.store.wish(video.id, Wish.PAUSE)  # in place of whatever was wished
            self.store.resume(video.id)
        return "kept"

    def _add(self, video: Video) -> None:
        folder = self._folder(video.id).path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            asked, files = _prepared(video, self.service, folder)
            for name, file in files.items():
                if file.parent != folder:
                    shutil.copyfile(file, folder / name)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"'{folder}' cannot be written ({error.strerror}): give another --out"
            ) from error
        new = NewJob(
            id=video.id, client=CLIENT, model=asked.model, prompt=asked.prompt, asked=asked.to_json()
        )
        self.store.add(new)

    def _jobs(self) -> Iterator[Job]:
        after = None
        while page := self.store.listed(CLIENT, after=after, limit=1000, newest_first=False):
            yield from page
            after = page[-1].id

    def _folder(self, name: str) -> JobFolder:
        return self.service.places.job(name)

    # Results -----------------------------------------------------------------------------------------------

    def _read_list(self) -> dict[str, str]:
        """Names of results, and their jobs, as they were when this folder was last used."""
        try:
            told = json.loads((self.out / LIST).read_bytes())
            return {str(name): str(job) for name, job in told.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise OutputError(f"'{self.out / LIST}' is damaged: give another --out") from error

    def _place(self, video: Video) -> None:
        made = self._folder(video.id).video
        for source in (made.with_suffix(".json"), made):
            _put(source, self.out / f"{video.name}{source.suffix}")
        for away in (self.out / DROPPED).glob(f"*-{video.id[-8:]}.*"):  # it is wanted again
            away.unlink()

    def _put_away(self, before: dict[str, str], now: dict[str, str]) -> None:
        """Free the names that stand for other videos now. What they showed is in the jobs' folders: rows that
        have moved get their results again, and those of rows that are gone are kept apart."""
        for name, job in before.items():
            if now.get(name) == job:
                continue
            for suffix in (".mp4", ".json"):
                place, away = self.out / f"{name}{suffix}", self.out / DROPPED / f"{name}-{job[-8:]}{suffix}"
                if job in self.videos:
                    place.unlink(missing_ok=True)
                elif place.exists():
                    away.parent.mkdir(exist_ok=True)
                    place.replace(away)


class Watch(Protocol):
    """Who is told how a batch goes on."""

    def running(self, jobs: list[tuple[Video, Job]]) -> None: ...

    def ended(self, video: Video, job: Job | None) -> None: ...


def carry_out(batch: Batch, engine: Engine, watch: Watch) -> None:
    """Have all of a batch made; whatever ends this, workers give back what they have first.

    Raises:
        InputError: an engine that cannot be had. OutputError: a result that cannot be put in its place.
    """
    engine.start()
    try:
        while batch.waiting:
            watch.running(insist(batch.running, within=PATIENCE))
            for video, job in insist(batch.ended, within=PATIENCE):
                watch.ended(video, job)
            time.sleep(LOOK)
    finally:
        engine.close()


def _put(source: Path, target: Path) -> None:
    """Give a file a second name, whole or not at all; a copy where the disk has no links."""
    if target.exists() and target.samefile(source):
        return
    part = target.with_name(f".{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        raise OutputError(f"'{target}' cannot be written ({error.strerror}): make room, and go on") from error


def _locked(out: Path) -> int:
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written ({error.strerror}): give another --out") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise OutputError(
            f"'{out}' is in use by another batch: wait for it, or give another --out"
        ) from error
    return handle
