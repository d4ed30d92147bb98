"""One run: plan -> pack -> denoise -> store -> decode -> events."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch

from framepack.errors import OutputError
from framepack.generation.clock import Clock, peak_memory
from framepack.generation.config import RunConfig
from framepack.generation.decode import decode_frames, preview
from framepack.generation.events import Decoded, Event, Finished, SectionFinished, Started, Step
from framepack.generation.hashing import hash_file, hash_json
from framepack.generation.maker import OnStep, SectionMaker, section_key, section_row
from framepack.generation.manifest import sync_folder, unwritable
from framepack.generation.places import Places, settings
from framepack.generation.settle import settle
from framepack.generation.store import Edit, RunStore, Stored, finished_digest, output_digests
from framepack.generation.stream import Emit, stream
from framepack.models.bundle import Bundle
from framepack.planning.method import Method
from framepack.planning.planners import Plan
from framepack.video.io import write_video

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A request that has passed every check; nothing is written yet.

    Attributes:
        context_tokens: tokens of context that a section sees once history is long enough.
        known: latents (C, h, w) by timeline index, of pictures given by the user.
        warnings: one line each, for the user.
        seconds: time that preparing took.
    """

    config: RunConfig
    method: Method
    plan: Plan
    context_tokens: int
    bundle: Bundle
    known: dict[int, torch.Tensor]
    places: Places
    overwrite: bool = False
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def events(self) -> Iterator[Event]:
        """Carry the run out. Closing the iterator stops it; the same request resumes it.

        Raises:
            OutputError, RunConflictError: the places changed since they were checked, or the disk is full.
        """
        return stream(lambda emit: run(self, emit))

    def redo(self, section: int, prompt: str | None = None) -> None:
        """Have the next ``events`` make a section anew: other noise and, if given, another prompt.

        Sections that see it are made anew too; others stay as they are.

        Raises:
            InputError: there is no such section. RunConflictError: the folder is in use.
        """
        with RunStore(self.places.workdir, self.config.to_json()) as store:
            store.redo(section, len(self.plan.sections), prompt)


def run(job: PreparedRun, emit: Emit) -> None:
    """Fill the timeline section by section, then write the video, telling ``emit`` of each event.

    Every section is on disk before the next begins. One that the folder already holds, made from
    the very same inputs, is taken from there.
    """
    clock, config, sections = Clock(prepare=job.seconds), job.config, job.plan.sections
    with RunStore(job.places.workdir, config.to_json()) as store:
        emit(_started(job, store))
        if _is_finished(job, store):
            job.places.write_config(config)
            emit(_finished(job, clock, cached=True))
            return
        maker = SectionMaker(config, job.bundle, clock)
        for frame, latent in job.known.items():
            store.place(_known(config, store, frame, latent))
        made: list[Stored] = []
        for planned in sections:
            begun = time.perf_counter()
            section = settle(planned, job.method, job.plan.timeline, store.fetch)
            edit = store.edits.get(section.index, Edit())
            key = section_key(config, section, edit, store)
            stored = store.find(key)
            cached = stored is not None
            if stored is None:
                on_step = _steps(section.index, len(sections), emit)
                latents = maker.make(section, edit, store, on_step)
                with clock("store"):
                    details = {"row": section_row(section), **asdict(edit)}
                    stored = store.add(key, section.index, section.frames, latents, details)
            store.place(stored)
            made.append(stored)
            emit(
                SectionFinished(
                    section=section.index,
                    sections=len(sections),
                    frames=section.frames,
                    latents=store.path(key),
                    cached=cached,
                    seconds=0.0 if cached else time.perf_counter() - begun,
                    preview=preview(job.bundle.codec, store.fetch, section.frames),
                )
            )
        begun = time.perf_counter()
        count = _write_video(job, store, made, clock)
        emit(Decoded(frames=count, seconds=time.perf_counter() - begun))
        job.places.write_config(config)
    emit(_finished(job, clock, cached=False))


def _steps(section: int, sections: int, emit: Emit) -> OnStep:
    def on_step(done: int, steps: int) -> None:
        emit(Step(section=section, sections=sections, step=done - 1, steps=steps))

    return on_step


def _started(job: PreparedRun, store: RunStore) -> Started:
    timeline = job.plan.timeline
    return Started(
        job=job.config.job,
        frames=timeline.frames,
        latent_frames=timeline.latent_frames,
        fps=timeline.fps,
        sections=len(job.plan.sections),
        steps=job.config.steps,
        context_tokens=job.context_tokens,
        stored=store.sections,
        out=job.places.out,
        workdir=job.places.workdir,
    )


def _finished(job: PreparedRun, clock: Clock, *, cached: bool) -> Finished:
    return Finished(
        out=job.places.out,
        config=job.places.config,
        frames=job.config.frames,
        fps=job.config.fps,
        sections=len(job.plan.sections),
        context_tokens=job.context_tokens,
        cached=cached,
        seconds=clock.seconds,
        peak_memory=peak_memory(job.config.device),
    )


def _is_finished(job: PreparedRun, store: RunStore) -> bool:
    digest = finished_digest(store.manifest.records)
    return digest is not None and job.places.out.is_file() and hash_file(job.places.out) == digest


def _known(config: RunConfig, store: RunStore, frame: int, latent: torch.Tensor) -> Stored:
    """A given picture's latent, on disk like a section's: what is resumed sees the very same bytes."""
    made_by = [config.image, config.model_digest, config.device, config.dtype]
    key = hash_json({"known": frame, "by": made_by})
    return store.find(key) or store.add(key, None, [frame], latent[:, None])


def _write_video(job: PreparedRun, store: RunStore, made: list[Stored], clock: Clock) -> int:
    """Decode to a hidden file beside the video, put its hash on record, then give it its name.

    In this order a file at ``out`` is always known for ours or not, whenever the process dies.
    """
    out, codec = job.places.out, job.bundle.codec
    parameter = next(codec.parameters())
    frames = decode_frames(codec, store.fetch, job.plan.timeline, parameter.device, parameter.dtype)
    part = out.with_name(f".{job.config.job}.part.mp4")
    for stale in out.parent.glob(f".*{job.config.job}.part*.mp4"):  # of a process that was killed here
        stale.unlink(missing_ok=True)
    try:
        with clock("encode"):
            count = write_video(part, _timed(frames, clock), job.config.fps, settings(job.config))
        clock.seconds["encode"] -= clock.seconds["decode"]
        digest = hash_file(part)
        if (
            out.exists()
            and not job.overwrite
            and hash_file(out) not in output_digests(store.manifest.records)
        ):
            raise OutputError(f"'{out}' appeared meanwhile: choose another --out or add --overwrite")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        store.record_output(store.chain(made), digest)
        part.replace(out)
        sync_folder(out.absolute().parent)
    except OutputError:
        raise
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _timed(items: Iterator[T], clock: Clock) -> Iterator[T]:
    """The same items, the time to make each on the clock as decoding."""
    while True:
        with clock("decode"):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
