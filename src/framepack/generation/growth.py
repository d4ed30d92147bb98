"""The video of a run while it is made: frames are decoded, encoded and shown as soon as they are certain.

    {workdir}/growing.mp4    a fragmented MP4, playable at any moment; gone when the video has its own name

A frame is certain once all latents up to its own are there. So it grows section by section in the orders that
go forward in time; in others it waits for what is missing at its front, and then has all the rest at once.

On a GPU a section is decoded and encoded while the next one is sampled: the encoder has the CPU, and kernels
of both interleave. What comes out is the same. A CPU has nothing to spare for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from framepack.generation.beside import Beside
from framepack.generation.clock import Clock
from framepack.generation.decode import FrameDecoder
from framepack.generation.devices import MakeSolver, OnStep, Sample
from framepack.generation.events import Decoding, Event, Grown, Remark
from framepack.generation.hashing import hash_json
from framepack.generation.manifest import GROWING, PREVIEW, Record
from framepack.generation.rough import RoughVideo
from framepack.generation.shortage import TILED, TURNS, again_if_short, tiled_if_short
from framepack.generation.store import RunStore, Stored
from framepack.generation.stream import Emit
from framepack.models.device import release
from framepack.planning.planners import Plan
from framepack.video.growing import GrowingVideo

if TYPE_CHECKING:
    from framepack.generation.run import PreparedRun

T = TypeVar("T")

TOLD = 8
"""Frames between two events while the video is written; a run can be stopped at each of them."""


class Growth:
    """The frames of a run, each decoded and encoded once.

    What the folder's file holds of a run that was stopped is kept, as far as it was made from the very
    latents that are on the timeline now.

    Args:
        told: metadata of the file.
    """

    def __init__(
        self, job: PreparedRun, store: RunStore, clock: Clock, emit: Emit, told: dict[str, Any]
    ) -> None:
        self.job, self.store, self.clock, self.emit, self.told = job, store, clock, emit, told
        self.path = job.places.workdir / GROWING
        self.known, self.chain = 0, ""  # latents from the start on without a gap, and what they are
        self._held = _marks(store.manifest.records)
        self._frames = 0  # in the file, of those that are known to be right
        self._video: GrowingVideo | None = None
        self._decoder: FrameDecoder | None = None
        self._overlaps = overlaps(job)
        self._beside = Beside(emit, _codec_device(job))
        self._rough: RoughVideo | None = None
        self._before = {r["key"] for r in store.manifest.records if r["kind"] == "latents"}
        if waits(job.plan):
            place = job.places.workdir / PREVIEW
            self._rough = RoughVideo(place, job.bundle.codec, store.fetch, job.plan.shown)

    def __enter__(self) -> Growth:
        return self

    def __exit__(self, *error: object) -> None:
        self._beside.close()
        if self._video is not None:
            self._video.close()

    def tell(self, event: Event) -> None:
        """Tell of an event, and before it of what has been decoded beside the run."""
        self._beside.tell()
        self.emit(event)

    def roomy(self, sample: Sample) -> Sample:
        """The same sampling. Where memory runs out in it, it is done again with nothing decoded beside it."""

        def sampled(
            model: Any, make_solver: MakeSolver, given: Mapping[str, Any], on_step: OnStep
        ) -> torch.Tensor:
            work = partial(sample, model, make_solver, given, on_step)
            return again_if_short(work, lambda: self._beside.busy, self._take_turns)

        return sampled

    def add(self, stored: Stored) -> None:
        """Show what has become certain by these latents, and in orders that wait, roughly what is there."""
        fresh = stored.key not in self._before
        # Only after a section that was sampled: the encoders of prompts, which come before the first one,
        # then have the memory to themselves.
        self.advance(beside=fresh and stored.section is not None)
        if self._rough is not None and self._rough.add(stored.frames, write=fresh):
            shown = self.job.config.frames
            self.emit(Grown(frame=self._rough.frames, frames=shown, path=self._rough.path, rough=True))

    def advance(self, *, beside: bool = False) -> None:
        """Show what has become certain; ``beside``: where the device has room for it, do not wait for it."""
        length = self.job.plan.shown.latent_frames
        if self.known == length or not self.store.holds(self.known):
            return
        self._settle()
        while self.known < length and self.store.holds(self.known):
            self.chain = hash_json([self.chain, self.store.reference(self.known)])
            self.known += 1
        held = self._held.get(self.known)
        if self._video is None and held is not None and held["chain"] == self.chain and self.path.is_file():
            self._frames = held["frames"]
            return
        self._grow()
        if not beside:
            self._settle()

    def finish(self) -> Path:
        """The file, with every frame in it."""
        assert self.known == self.job.plan.shown.latent_frames, "a frame's latents are missing"
        self._settle()
        if self._video is None or self._video.frames < self.job.config.frames:
            self._grow()
            self._settle()
        if self._video is None:  # memory did not suffice beside the run
            self._grow()
        assert self._video is not None
        self._video.close()
        return self.path

    def remove(self) -> None:
        """Drop what was shown on the way."""
        self.path.unlink(missing_ok=True)
        if self._rough is not None:
            self._rough.path.unlink(missing_ok=True)

    def _grow(self) -> None:
        """Decode and write what is known. Where memory does not suffice, in tiles from there on."""
        if self._overlaps:
            # All of it there: what the decoder keeps from one section to the next is of that thread's stream.
            self._beside.begin(self._write)
        else:
            tiled_if_short(self.job.bundle, partial(self._write, self.emit), self._drop)

    def _settle(self) -> None:
        """Wait for what is decoded beside the run. What memory did not suffice for, the next turn does."""
        again_if_short(self._beside.wait, lambda: self._overlaps, self._take_turns)

    def _take_turns(self) -> None:
        """Decode nothing beside the run from here on."""
        self._overlaps = False
        self._beside.close()
        self._let_go()
        release(self.job.bundle.device)
        self.emit(Remark(text=TURNS))

    def _drop(self) -> None:
        self.emit(Remark(text=TILED))
        self._let_go()

    def _let_go(self) -> None:
        """Let go of the decoder and of frames that were begun; the file has those before them."""
        if self._video is not None:
            self._video.close()
        self._video = self._decoder = None

    def _write(self, emit: Emit) -> None:
        if self._video is None:
            # First of all: what is written from here on is not what later marks speak of.
            self._held.clear()
            self.store.manifest.append({"kind": "cut", "frames": self._frames})
            self._video = GrowingVideo.resume(self.path, self.job.config.fps, self.told, at_most=self._frames)
        if self._decoder is None:
            # Fewer than on record where the file was cut short.
            shown, fetch = self.job.plan.shown, self.store.fetch
            self._decoder = FrameDecoder(self.job.bundle.codec, fetch, shown, skip=self._video.frames)
            emit(Decoding(frame=self._video.frames, frames=shown.frames))
        first = self._video.frames
        decoded = self.job.shown(_timed(self._decoder.advance(self.known), self.clock), first)
        spent = self.clock.seconds.get("decode", 0.0)
        with self.clock("encode"):
            count = self._video.append(self._counted(decoded, first, emit))
        self.clock.seconds["encode"] -= self.clock.seconds.get("decode", 0.0) - spent
        if count:
            frames = self._frames = self._video.frames
            record = {"kind": "grown", "latents": self.known, "frames": frames, "chain": self.chain}
            self.store.manifest.append(record)
            emit(Grown(frame=frames, frames=self.job.config.frames, path=self.path))

    def _counted(self, frames: Iterator[T], first: int, emit: Emit) -> Iterator[T]:
        """The same frames, with an event after every ``TOLD``."""
        for done, frame in enumerate(frames, start=first + 1):
            yield frame
            if done % TOLD == 0:
                emit(Decoding(frame=done, frames=self.job.config.frames))


def overlaps(job: PreparedRun) -> bool:
    """Whether a section is decoded while the next one is sampled.

    It is where the codec has a CUDA device, or a CPU that the transformer leaves alone: on one CPU both
    would have half of it each, and Metal takes work from one thread at a time. Not where parts of the model
    take turns on the device or lie on several, nor where other processes wait for this one.
    """
    bundle, codec = job.bundle, _codec_device(job).type
    alone = codec == "cuda" or (codec == "cpu" and bundle.device.type != "cpu")
    return alone and bundle.execution is None and job.config.devices == 1


def _codec_device(job: PreparedRun) -> torch.device:
    return getattr(job.bundle.codec, "device", job.bundle.device)


def _marks(records: Sequence[Record]) -> dict[int, Record]:
    """What was written of the file that is there, by the latents that were known: not what was cut off."""
    held: dict[int, Record] = {}
    for record in records:
        if record["kind"] == "cut":
            held = {known: mark for known, mark in held.items() if mark["frames"] <= record["frames"]}
        elif record["kind"] == "grown":
            held[record["latents"]] = record
    return held


def waits(plan: Plan) -> bool:
    """Whether there are sections by which no frame at the front becomes certain."""
    known, front = set(plan.timeline.known), 0
    for section in plan.sections:
        known.update(section.frames)
        before = front
        while front in known:
            known.discard(front)
            front += 1
        if front == before:
            return True
    return False


def _timed(items: Iterator[T], clock: Clock) -> Iterator[T]:
    """The same items, the time to make each on the clock as decoding."""
    while True:
        with clock("decode"):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
