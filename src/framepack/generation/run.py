"""One run: plan -> pack -> denoise -> store -> decode -> events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from framepack.errors import InputError, OutputError
from framepack.generation.clock import Clock, peak_memory
from framepack.generation.config import RunConfig
from framepack.generation.events import Decoded, Event, Finished, Started
from framepack.generation.fill import fill
from framepack.generation.given import Given, sounds_of, with_copies
from framepack.generation.growth import Growth
from framepack.generation.hashing import hash_file
from framepack.generation.manifest import sync_folder, unwritable
from framepack.generation.places import Places, settings
from framepack.generation.request import GenerateRequest, check_seed, one_prompt
from framepack.generation.saved import keep_request
from framepack.generation.shortage import told_if_short
from framepack.generation.store import Edit, RunStore, Stored, finished_digest, output_digests
from framepack.generation.stream import Emit, stream
from framepack.models.bundle import Bundle
from framepack.planning.method import Method
from framepack.planning.planners import Plan
from framepack.video.remux import copy_video

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


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
        known: latents of what the user gave. given: its pixels.
        picture: the start picture, at the size of the video.
        request: kept in the work folder, where the model is one that can be loaded again.
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
    given: tuple[Given, ...] = ()
    picture: Image | None = None
    overwrite: bool = False
    request: GenerateRequest | None = None
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

    def shown(self, decoded: Iterator[np.ndarray], first: int = 0) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) as the video shows them, from number ``first`` on."""
        if not self.config.copied:
            return decoded
        return with_copies(decoded, self.given, self.plan.shown, first)

    def redo(
        self, section: int, prompt: str | None = None, *, seed: int | None = None, alone: bool = False
    ) -> None:
        """Have the next ``events`` make a section anew: other noise and, if given, another prompt.

        Sections that see it are made anew too; others stay as they are. Without ``prompt`` the section
        keeps the one it has; ``config.prompt`` is the way back to the run's own.

        Args:
            seed: of its noise, in place of the run's. alone: all others stay as they are, and it sees those
                after it as well.

        Raises:
            InputError: there is no such section, or a prompt or seed that cannot be used.
            RunConflictError: the folder is in use.
        """
        at, told = self._start_of(section), prompt == self.config.prompt
        if told:
            prompt = None
        elif prompt is not None:
            prompt = one_prompt(prompt)
        if seed is not None:
            check_seed(seed)
        if alone and section == 0 and self.plan.loop:
            raise InputError(
                "the first section of a loop is where its end leads: it is not made again alone, but with "
                "those that saw it (--dependents)"
            )
        with RunStore(self.places.workdir, self.config.to_json()) as store:
            store.redo(at, prompt, seed=seed, alone=alone, told=told)

    def restore(self, section: int) -> None:
        """Have the next ``events`` take a section as it was first made; it is still on disk.

        Raises:
            InputError: there is no such section. RunConflictError: the folder is in use.
        """
        at = self._start_of(section)
        with RunStore(self.places.workdir, self.config.to_json()) as store:
            store.restore(at)

    def _start_of(self, section: int) -> int:
        """The first latent frame of a section. Raises InputError: there is no such section."""
        count = len(self.plan.sections)
        if not 0 <= section < count:
            raise InputError(f"section {section} does not exist: choose one of 0 to {count - 1}")
        return self.plan.sections[section].frames[0]

    def edits(self, store: RunStore) -> dict[int, Edit]:
        """What was changed about sections, by their index."""
        changes = store.changes
        starts = {section.index: section.frames[0] for section in self.plan.sections}
        return {index: changes[at] for index, at in starts.items() if at in changes}


def run(job: PreparedRun, emit: Emit) -> None:
    """Fill the timeline section by section, then write the video, telling ``emit`` of each event.

    Every section is on disk before the next begins. One that the folder already holds, made from
    the very same inputs, is taken from there.
    """
    clock, config = Clock(prepare=job.seconds), job.config
    workdir = job.places.workdir
    with told_if_short(config, job.bundle, workdir), RunStore(workdir, config.to_json()) as store:
        emit(_started(job, store))
        if job.request is not None:
            keep_request(job.request, job.places.workdir)
        told = settings(config, job.bundle.spec.name, job.edits(store))
        if _is_finished(job, store):
            job.places.write_config(told)
            emit(_finished(job, clock, cached=True))
            return
        with Growth(job, store, clock, emit, told) as growth:
            # A section that is made again by itself is known after all others.
            made = fill(
                job,
                store,
                clock,
                growth.tell,
                lambda stored: None if store.retakes else growth.add(stored),
                growth.roomy,
            )
            begun = time.perf_counter()
            growth.advance()
            _give_name(job, store, made, growth.finish(), told)
            growth.remove()
        emit(Decoded(frames=job.config.frames, seconds=time.perf_counter() - begun))
        job.places.write_config(told)
    emit(_finished(job, clock, cached=False))


def latents_of(job: PreparedRun, emit: Emit) -> torch.Tensor:
    """The same without a video: latents (1, C, N, h, w) of the whole timeline, on the CPU."""
    with RunStore(job.places.workdir, job.config.to_json()) as store:
        emit(_started(job, store))
        fill(job, store, Clock(prepare=job.seconds), emit)
        return store.fetch(range(job.plan.shown.latent_frames))


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
        elapsed=clock.elapsed,
        peak_memory=peak_memory(job.bundle.device),
        other_peaks=clock.other_peaks or tuple(map(peak_memory, job.bundle.devices[1:])),
    )


def _is_finished(job: PreparedRun, store: RunStore) -> bool:
    digest = finished_digest(store.manifest.records)
    return digest is not None and job.places.out.is_file() and hash_file(job.places.out) == digest


def _give_name(
    job: PreparedRun, store: RunStore, made: list[Stored], grown: Path, told: dict[str, Any]
) -> None:
    """Copy a grown file's packets to a hidden one beside the video, record its hash, then give it its name.

    In this order a file at ``out`` is always known for ours or not, whenever the process dies.
    """
    out = job.places.out
    # Always of this name: what a killed process left is written over.
    part = out.with_name(f".{out.stem[:32]}.{job.config.job}.part.mp4")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        copy_video(grown, part, told, sounds_of(job.given, job.plan.shown))
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
