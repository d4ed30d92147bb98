"""One run: plan -> pack -> denoise -> store -> decode -> events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from framepack.errors import OutputError
from framepack.generation.clock import Clock, peak_memory
from framepack.generation.config import RunConfig
from framepack.generation.decode import decode_frames, preview
from framepack.generation.events import Decoded, Decoding, Event, Finished, SectionFinished, Started, Step
from framepack.generation.hashing import hash_file, hash_json
from framepack.generation.held import as_held, held_latents
from framepack.generation.maker import OnStep, SectionMaker, prompts_of, section_key, section_row
from framepack.generation.manifest import sync_folder, unwritable
from framepack.generation.places import Places, settings
from framepack.generation.request import check_prompt
from framepack.generation.settle import settle
from framepack.generation.store import Edit, RunStore, Stored, finished_digest, output_digests
from framepack.generation.stream import Emit, stream
from framepack.models.bundle import Bundle
from framepack.planning.method import Method
from framepack.planning.planners import Plan
from framepack.video.io import encode_video

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

TOLD = 8
"""Frames between two events while the video is written; a run can be stopped at each of them."""


@dataclass(frozen=True, eq=False)
class Known:
    """Latents (C, n, h, w) from timeline index ``at`` on, of pixels with this digest."""

    at: int
    latents: torch.Tensor
    digest: str


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A request that has passed every check; nothing is written yet.

    Attributes:
        context_tokens: the most tokens of history, tail included, that a section sees.
        known: latents of what the user gave.
        picture: the start picture, at the size of the video.
        warnings: one line each, for the user.
        seconds: time that preparing took.
    """

    config: RunConfig
    method: Method
    plan: Plan
    context_tokens: int
    bundle: Bundle
    known: tuple[Known, ...]
    places: Places
    picture: Image | None = None
    overwrite: bool = False
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def carry_out(self, on_event: Callable[[Event], None]) -> None:
        """Carry the run out in this thread. What ``on_event`` raises stops it; the same request resumes it.

        Raises:
            OutputError, RunConflictError: the places changed since they were checked, or the disk is full.
        """
        run(self, on_event)

    def events(self) -> Iterator[Event]:
        """The same as an iterator, in a thread of its own. Closing it stops the run.

        On a CPU it is slower: PyTorch then has workers for both threads, and more of them than cores.
        """
        return stream(self.carry_out)

    def redo(self, section: int, prompt: str | None = None) -> None:
        """Have the next ``events`` make a section anew: other noise and, if given, another prompt.

        Sections that see it are made anew too; others stay as they are. Without ``prompt`` the section
        keeps the one it has; ``config.prompt`` is the way back to the run's own. A prompt by time has no
        meaning here and is taken by its letters.

        Raises:
            InputError: there is no such section, or a prompt that cannot be used.
            RunConflictError: the folder is in use.
        """
        if prompt is not None:
            check_prompt(prompt)
        with RunStore(self.places.workdir, self.config.to_json()) as store:
            store.redo(section, len(self.plan.sections), prompt)

    def restore(self, section: int) -> None:
        """Have the next ``events`` take a section as it was first made; it is still on disk.

        Raises:
            InputError: there is no such section. RunConflictError: the folder is in use.
        """
        with RunStore(self.places.workdir, self.config.to_json()) as store:
            store.restore(section, len(self.plan.sections))


def run(job: PreparedRun, emit: Emit) -> None:
    """Fill the timeline section by section, then write the video, telling ``emit`` of each event.

    Every section is on disk before the next begins. One that the folder already holds, made from
    the very same inputs, is taken from there.
    """
    clock, config = Clock(prepare=job.seconds), job.config
    with RunStore(job.places.workdir, config.to_json()) as store:
        emit(_started(job, store))
        told = settings(config, job.bundle.spec.name, store.edits)
        if _is_finished(job, store):
            job.places.write_config(told)
            emit(_finished(job, clock, cached=True))
            return
        made = _fill(job, store, clock, emit)
        begun = time.perf_counter()
        count = _write_video(job, store, made, clock, told, emit)
        emit(Decoded(frames=count, seconds=time.perf_counter() - begun))
        job.places.write_config(told)
    emit(_finished(job, clock, cached=False))


def latents_of(job: PreparedRun, emit: Emit) -> torch.Tensor:
    """The same without a video: latents (1, C, N, h, w) of the whole timeline, on the CPU."""
    with RunStore(job.places.workdir, job.config.to_json()) as store:
        emit(_started(job, store))
        _fill(job, store, Clock(prepare=job.seconds), emit)
        return store.fetch(range(job.plan.shown.latent_frames))


def _fill(job: PreparedRun, store: RunStore, clock: Clock, emit: Emit) -> list[Stored]:
    """Place every section on the timeline of ``store``, made now or before."""
    config, sections, conditioner = job.config, job.plan.sections, job.bundle.conditioner
    changed = [edit.prompt for edit in store.edits.values() if edit.prompt is not None]
    maker = SectionMaker(config, job.bundle, clock, job.picture, changed)
    for known in job.known:
        frames = range(known.at, known.at + known.latents.shape[1])
        _place(job, store, _known(config, store, frames, known.digest, known.latents.clone))
    held = job.bundle.spec.held_start
    if held is not None and job.picture is not None:
        size = job.method.section_size
        for frame, make in held_latents(job.bundle.codec, job.picture, size, held, config.seed).items():
            store.place(_known(config, store, [frame], config.image, lambda make=make: make()[:, None]))  # type: ignore[misc]
    made: list[Stored] = []
    for planned in sections:
        begun = time.perf_counter()
        section = settle(planned, job.method, job.plan.timeline, store.fetch)
        if held is not None and job.picture is not None:
            section = as_held(section)
        edit = store.edits.get(section.index, Edit())
        told = prompts_of(config, section, edit, job.plan.timeline)
        key = section_key(config, section, edit, told, store, sees_picture=conditioner.sees_picture)
        stored = store.find(key)
        cached = stored is not None
        if stored is None:
            on_step = _steps(section.index, len(sections), emit)
            latents = maker.make(section, edit, told, store, on_step)
            with clock("store"):
                details = {"row": section_row(section), **asdict(edit)}
                stored = store.add(key, section.index, section.frames, latents, details)
        _place(job, store, stored)
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
    return made


def _steps(section: int, sections: int, emit: Emit) -> OnStep:
    def on_step(done: int, steps: int) -> None:
        emit(Step(section=section, sections=sections, step=done - 1, steps=steps))

    return on_step


def _started(job: PreparedRun, store: RunStore) -> Started:
    timeline = job.plan.shown
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
        peak_memory=peak_memory(job.bundle.device),
    )


def _is_finished(job: PreparedRun, store: RunStore) -> bool:
    digest = finished_digest(store.manifest.records)
    return digest is not None and job.places.out.is_file() and hash_file(job.places.out) == digest


def _place(job: PreparedRun, store: RunStore, stored: Stored) -> None:
    """Let latents fill their frames of the timeline; those at the start of a loop come again at its end."""
    store.place(stored)
    length = job.plan.shown.latent_frames
    if job.plan.loop and stored.frames[-1] < job.plan.loop:
        store.place(replace(stored, frames=tuple(frame + length for frame in stored.frames)))


def _known(
    config: RunConfig,
    store: RunStore,
    frames: Sequence[int],
    digest: str | None,
    make: Callable[[], torch.Tensor],
) -> Stored:
    """Given latents (C, n, h, w), on disk like a section's: what is resumed sees the very same bytes."""
    made_by = [digest, config.model_digest, config.device, config.dtype]
    if frames[0] < 0:  # as the model sees it: noised, and held for a section
        made_by += [str(config.seed), str(config.method["section_size"])]
    key = hash_json({"known": [frames[0], len(frames)], "by": made_by})
    return store.find(key) or store.add(key, None, frames, make())


def _write_video(
    job: PreparedRun, store: RunStore, made: list[Stored], clock: Clock, told: dict[str, Any], emit: Emit
) -> int:
    """Decode to a hidden file beside the video, put its hash on record, then give it its name.

    In this order a file at ``out`` is always known for ours or not, whenever the process dies.
    """
    out, codec = job.places.out, job.bundle.codec
    decoded = decode_frames(codec, store.fetch, job.plan.shown)
    frames = _told(_timed(decoded, clock), job.config.frames, emit)
    # Always of this name: what a killed process left is written over.
    part = out.with_name(f".{out.stem[:32]}.{job.config.job}.part.mp4")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with clock("encode"):
            count = encode_video(part, frames, job.config.fps, told)
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


def _told(frames: Iterator[T], total: int, emit: Emit) -> Iterator[T]:
    """The same frames, with an event before the first and after every ``TOLD`` that were taken."""
    emit(Decoding(frame=0, frames=total))
    for done, frame in enumerate(frames, start=1):
        yield frame
        if done % TOLD == 0:
            emit(Decoding(frame=done, frames=total))
