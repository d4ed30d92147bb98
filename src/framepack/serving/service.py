"""What people can do with jobs, behind the API and the page alike: every rule of the service is here.

Nothing of it needs PyTorch: requests are checked and planned as far as that goes without weights, so that
what cannot be made is refused at once.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from framepack.errors import FramePackError, InputError, OutputError, UnknownNameError, first_line
from framepack.generation.fork import fork_run
from framepack.generation.request import check_prompt, check_seed, one_prompt
from framepack.generation.selection import select
from framepack.models.source import Source, resolve_model
from framepack.planning.timeline import MAX_SECONDS
from framepack.serving.asked import Asked
from framepack.serving.config import ServiceConfig, lora_files
from framepack.serving.jobs import ENDED, Job, NewJob, NoSuchJob, Status, Wish, WrongState
from framepack.serving.places import JobFolder, ServiceFolder
from framepack.serving.store import JobStore
from framepack.video.images import read_image

GB = 1e9
RECENT = 20
"""Videos of a model from which its pace is known."""
HOUR, DAY = 3600.0, 86400.0
PICTURES = ("PNG", "JPEG", "WEBP", "AVIF", "GIF")
"""Of Pillow's formats, those that browsers show; others are seldom sent, and their readers less tried."""
AT_ONCE = 2
"""Pictures that are decoded at the same time: each may take some 300 MB."""


class TooMuch(InputError):
    """More than one video of this service may have."""


class NoRoom(FramePackError):
    """The service's disk, or its share of it, is full."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """queued: videos of one client that have not ended. seconds: of a video, what it goes on from included.
    picture: pixels of one. upload: bytes of one request. posts: requests of one client in a minute that
    change something. quota: GB of all videos together, and days: until one is deleted; None for no end.
    spare: GB of the disk that are left alone.
    """

    queued: int = 20
    seconds: float = 600.0
    picture: int = 16_000_000
    upload: int = 256_000_000
    posts: int = 240
    quota: float | None = None
    days: float | None = None
    spare: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a video takes.

    sections, steps, frames, fps, size: (width, height). context_tokens: the most history that a section sees.
    seconds: of work, and bytes: at the peak, both as measured when this model was last used; None before.
    """

    method: str
    sections: int
    steps: int
    frames: int
    fps: float
    size: tuple[int, int]
    context_tokens: int
    seconds: float | None
    memory: int | None


class Service:
    """One service, as its clients see it; any number of processes may have it open.

    Args:
        store: its jobs. config: its models and places.
    """

    def __init__(self, store: JobStore, config: ServiceConfig, limits: Limits | None = None) -> None:
        self.store, self.config, self.limits = store, config, limits or Limits()
        self.places = ServiceFolder(config.data)
        self._source = lru_cache(maxsize=32)(self._found)
        self._decoding = threading.BoundedSemaphore(AT_ONCE)
        self._planning = threading.Lock()  # many at once would keep those who only look waiting

    # Asked for ---------------------------------------------------------------------------------------------

    def submit(self, client: str, asked: Asked, files: Mapping[str, Path]) -> Job:
        """Queue a video.

        Args:
            files: what it speaks of, by the names it has for them; they are moved.

        Raises:
            InputError: it cannot be made. TooMuch: it may not be. QueueFull, NoRoom: not now.
        """
        new = NewJob(client=client, model=asked.model, prompt=asked.prompt, asked=asked.to_json())
        with self._folder_of(new) as folder:
            for name in asked.files:
                shutil.move(files[name], folder.path / name)
            self.cost(asked, folder.path)
            return self._add(new)

    def remix(self, client: str, name: str, prompt: str) -> Job:
        """The same video with another prompt; sections that it leaves as they are need not be made again."""
        check_prompt(prompt)
        return self._again(client, name, prompt=prompt)

    def redo(
        self,
        client: str,
        name: str,
        section: int,
        *,
        prompt: str | None = None,
        seed: int | None = None,
        dependents: bool = False,
    ) -> Job:
        """The same video with one section made again, from what is before and after it.

        Args:
            section: its index, from 0. dependents: those that saw it are made again too.

        Raises:
            InputError: there is no such section, or a prompt or seed that cannot be used. NoSuchJob.
            WrongState: the video is not completed.
        """
        if prompt is not None:
            prompt = one_prompt(prompt)
        if seed is not None:
            check_seed(seed)
        sections = int(self.store.get(name, client).progress.get("sections", 0))
        if not 0 <= section < sections:
            raise InputError(f"section {section + 1}: this video has 1 to {sections}")
        how = {"section": section, "prompt": prompt, "seed": seed, "alone": not dependents}
        return self._again(client, name, redo=how)

    def extend(self, client: str, name: str, prompt: str, seconds: float) -> Job:
        """A video that goes on from the end of another one, whose frames are its first."""
        job = self._completed(client, name)
        before = Asked.from_json(job.asked)
        asked = Asked(
            model=before.model,
            prompt=prompt,
            negative_prompt=before.negative_prompt,
            seconds=seconds,
            from_clip="before.mp4",
            copy_clips=True,
            loras=before.loras,
            seed=before.seed,
            steps=before.steps,
            guidance=before.guidance,
        )
        progress = job.progress
        whole = seconds + progress["frames"] / progress["fps"]
        if whole > self.limits.seconds:
            raise TooMuch(
                f"{whole:g} s with what is there: a video here has at most {self.limits.seconds:g} s"
            )
        new = NewJob(client=client, model=asked.model, prompt=prompt, asked=asked.to_json(), parent=name)
        with self._folder_of(new) as folder:
            shutil.copyfile(self.places.job(name).video, folder.path / "before.mp4")
            self.cost(asked, folder.path)
            return self._add(new)

    def _again(
        self, client: str, name: str, *, prompt: str | None = None, redo: dict[str, Any] | None = None
    ) -> Job:
        job = self._completed(client, name)
        asked = Asked.from_json(job.asked)
        if prompt is not None:
            asked = replace(asked, prompt=prompt)
        new = NewJob(
            client=client,
            model=asked.model,
            prompt=asked.prompt,
            asked=asked.to_json(),
            parent=name,
            redo=redo,
        )
        theirs = self.places.job(name)
        with self._folder_of(new) as folder:
            for file in asked.files:
                shutil.copyfile(theirs.path / file, folder.path / file)
            self.cost(asked, folder.path)
            fork_run(theirs.run, folder.run)
            return self._add(new)

    @contextmanager
    def _folder_of(self, new: NewJob) -> Iterator[JobFolder]:
        """A new job's folder, to be filled; gone again where the job does not come to be.

        Raises:
            NoRoom: it cannot be written. NoSuchJob: the video that it begins with was deleted meanwhile.
        """
        self._check_room()
        folder = self.places.job(new.id)
        try:
            folder.path.mkdir(parents=True)
            yield folder
        except BaseException as error:
            folder.remove()
            if new.parent is not None and not self.places.job(new.parent).video.exists():
                raise NoSuchJob(new.parent) from error
            if isinstance(error, OSError):
                reason = error.strerror or first_line(error)
                raise NoRoom(f"nothing can be written now ({reason}): try again later") from error
            raise

    def _completed(self, client: str, name: str) -> Job:
        job = self.store.get(name, client)
        if job.status is not Status.COMPLETED:
            raise WrongState(f"video '{name}' is {job.status}: wait until it is completed")
        return job

    def _add(self, new: NewJob) -> Job:
        return self.store.add(new, limit=self.limits.queued)

    def keep_picture(self, file: Path, target: Path) -> None:
        """A picture that somebody sent, as a PNG. Raises InputError, OutputError: see ``as_picture``."""
        with self._decoding:
            as_picture(file, target, self.limits.picture)

    # What it takes -----------------------------------------------------------------------------------------

    def cost(self, asked: Asked, folder: Path) -> Cost:
        """What a video would take.

        Raises:
            InputError: it cannot be made. TooMuch: it is too long.
        """
        request = asked.request(folder, self.config.offers, lora_files(self.config.loras))
        spec = self._source(asked.model).spec
        length = asked.frames / spec.fps if asked.frames is not None else asked.seconds or 0.0
        if self.limits.seconds < length <= MAX_SECONDS:  # before it is planned, which takes its time
            raise self._too_long(length)
        # Clips are opened by workers alone: what they do to a decoder, they do there.
        with self._planning:
            selection = select(replace(request, from_clip=None, to_clip=None), spec)
        timeline = selection.timeline
        if timeline.seconds > self.limits.seconds:
            raise self._too_long(timeline.seconds)
        steps = asked.steps or spec.steps
        sections = len(selection.plan.sections)
        pace, memory = self._measured(asked.model)
        return Cost(
            method=selection.method.order,
            sections=sections,
            steps=steps,
            frames=timeline.frames,
            fps=timeline.fps,
            size=(selection.size[1], selection.size[0]),
            context_tokens=selection.context_tokens,
            seconds=None if pace is None else round(pace * sections * steps, 1),
            memory=memory,
        )

    def _too_long(self, seconds: float) -> TooMuch:
        return TooMuch(f"{seconds:g} s of video: this service makes at most {self.limits.seconds:g} s")

    def about(self, model: str) -> dict[str, Any]:
        """What a client may choose of a model."""
        spec = self._source(model).spec
        return {
            "name": spec.name,
            "sizes": [f"{width}x{height}" for height, width in spec.buckets],
            "fps": spec.fps,
            "methods": list(spec.methods),
            "method": spec.default_method,
            "steps": spec.steps,
            "guidance": spec.guidance,
        }

    def method_named(self, model: str, method: object) -> str | None:
        """A model's name for a method, given as ``Method.to_json`` writes it; None: it has none."""
        methods = self._source(model).spec.methods
        return next((name for name, known in methods.items() if known.to_json() == method), None)

    def check_rate(self, model: str, fps: float | None) -> None:
        """Refuse a rate that a model does not have. Raises InputError."""
        own = self._source(model).spec.fps
        if fps is not None and fps != own:
            raise InputError(f"fps {fps:g}: model '{model}' makes {own:g} frames a second; leave fps out")

    def _found(self, model: str) -> Source:
        offer = self.config.offers.get(model)
        if offer is None:
            raise UnknownNameError("model", model, list(self.config.offers))
        return resolve_model(offer.model, offer.parts)

    def _measured(self, model: str) -> tuple[float | None, int | None]:
        """Seconds of work for one step of one section, and bytes at the peak, of the videos made last."""
        done = [
            job
            for job in self.store.listed(statuses=[Status.COMPLETED], limit=5 * RECENT)
            if job.model == model and job.progress.get("work") and not job.progress.get("kept")
        ][:RECENT]
        if not done:
            return None, None
        told = [job.progress for job in done]
        pace = statistics.median(p["work"] / (p["sections"] * p["steps"]) for p in told)
        return pace, max(int(p["memory"]) for p in told)

    # Ended -------------------------------------------------------------------------------------------------

    def delete(self, client: str, name: str) -> None:
        """Delete a video, whatever becomes of it; one that is being made is stopped. Raises NoSuchJob."""
        if self.store.wish(name, Wish.DELETE, client):
            self.places.job(name).remove()  # else its worker does

    def clean(self) -> list[str]:
        """Delete what is past its days or over the quota, and what is left of no job; gives the ids."""
        gone, now = [], self.store.now()
        known = {job.id: job for job in self._all()}
        for name in self.places.names():
            # A job is in the store only after its folder is whole.
            if name not in known and _untouched(self.places.job(name).path, HOUR):
                self.places.job(name).remove()
                gone.append(name)
        if self.places.uploads.is_dir():  # of a server that was killed
            for left in self.places.uploads.iterdir():
                if _untouched(left, DAY):
                    shutil.rmtree(left, ignore_errors=True)
        ended = sorted(
            (job for job in known.values() if job.status in ENDED), key=lambda job: job.ended or 0.0
        )
        total = sum(job.size for job in ended)
        for job in ended:
            old = self.limits.days is not None and now - (job.ended or now) > self.limits.days * DAY
            over = self.limits.quota is not None and total > self.limits.quota * GB
            if old or over:
                with suppress(NoSuchJob):  # somebody was faster
                    self.delete(job.client, job.id)
                total -= job.size
                gone.append(job.id)
        return gone

    def _all(self) -> list[Job]:
        found: list[Job] = []
        while page := self.store.listed(after=found[-1].id if found else None, limit=1000):
            found += page
        return found

    @property
    def free(self) -> int:
        """Bytes that are left on the disk of videos."""
        self.places.path.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.places.path).free

    def _check_room(self) -> None:
        """Raises NoRoom: the disk is nearly full."""
        free = self.free
        if free < self.limits.spare * GB:
            raise NoRoom(
                f"the service's disk has {free / GB:.1f} GB left of the {self.limits.spare:g} it keeps: "
                "delete videos, or ask whoever runs it"
            )


def _untouched(folder: Path, seconds: float) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > seconds
    except FileNotFoundError:
        return False


def as_picture(file: Path, target: Path, most: int) -> None:
    """A picture that somebody sent, as a PNG of its pixels alone.

    Raises:
        InputError: it is none, it is damaged, or has more than ``most`` pixels; told without its path.
    """
    try:
        picture = read_image(file, most, PICTURES)
    except InputError as error:
        raise InputError(str(error).replace(f"'{file}' ", "").replace(str(file), "it")) from error
    try:
        picture.save(target, "PNG", compress_level=1)
    except OSError as error:
        raise OutputError(f"the picture cannot be kept ({error.strerror}): try again later") from error
