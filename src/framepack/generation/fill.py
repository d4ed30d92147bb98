"""Fill the timeline of a run: what is given, each section in turn, then those made again by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from framepack.generation.clock import Clock
from framepack.generation.config import RunConfig
from framepack.generation.decode import preview
from framepack.generation.devices import Sample, sampling
from framepack.generation.events import SectionFinished, Step
from framepack.generation.hashing import hash_json
from framepack.generation.held import as_held, held_latents
from framepack.generation.maker import OnStep, SectionMaker, prompts_of, section_key, section_row
from framepack.generation.settle import settle
from framepack.generation.store import Edit, RunStore, Stored
from framepack.generation.stream import Emit
from framepack.planning.planners import again
from framepack.planning.sections import Section

if TYPE_CHECKING:
    from framepack.generation.run import PreparedRun

OnStored = Callable[[Stored], None]
Wrapped = Callable[[Sample], Sample]


def fill(
    job: PreparedRun,
    store: RunStore,
    clock: Clock,
    emit: Emit,
    on_stored: OnStored = lambda stored: None,
    roomy: Wrapped = lambda sample: sample,
) -> list[Stored]:
    """Place every section on the timeline of ``store``, made now or before; returns them by index.

    Args:
        on_stored: told of each when it is on the timeline, and of what is given.
        roomy: put around what samples a section.
    """
    with sampling(job, clock) as sample:
        maker = SectionMaker(job.config, job.bundle, clock, job.picture, store.prompts, roomy(sample))
        return _filled(job, store, maker, clock, emit, on_stored)


def _filled(
    job: PreparedRun,
    store: RunStore,
    maker: SectionMaker,
    clock: Clock,
    emit: Emit,
    on_stored: OnStored,
) -> list[Stored]:
    sections = job.plan.sections
    for known in job.known:
        frames = range(known.at, known.at + known.latents.shape[1])
        stored = _known(job.config, store, frames, known.digest, known.latents.clone)
        _place(job, store, stored)
        on_stored(stored)
    held = job.bundle.spec.held_start if job.picture is not None else None
    if held is not None:
        assert job.picture is not None
        size = job.method.section_size
        for frame, make in held_latents(job.bundle.codec, job.picture, size, held, job.config.seed).items():
            store.place(_known(job.config, store, [frame], job.config.image, partial(_framed, make)))
    made: list[Stored] = []
    for section in sections:
        made.append(
            _made(job, store, maker, clock, emit, section, store.edits.get(section.frames[0], Edit()))
        )
        on_stored(made[-1])
    # Afterwards, so that no other section sees them, and each of them sees all that is beside it.
    first, by_start = list(made), {section.frames[0]: section for section in sections}
    for at, edit in store.retakes:
        if at not in by_start:  # of a section that this story has no more
            continue
        section = by_start[at]
        if edit is None:
            made[section.index] = first[section.index]
            _place(job, store, made[section.index])
        else:
            made[section.index] = _made(job, store, maker, clock, emit, again(job.plan, section), edit)
        on_stored(made[section.index])
    return made


def _made(
    job: PreparedRun,
    store: RunStore,
    maker: SectionMaker,
    clock: Clock,
    emit: Emit,
    planned: Section,
    edit: Edit,
) -> Stored:
    """One section on the timeline, made now unless the very same is on disk."""
    begun, config = time.perf_counter(), job.config
    section = settle(planned, job.method, job.plan.timeline, store.fetch)
    if job.bundle.spec.held_start is not None and job.picture is not None:
        section = as_held(section)
    told = prompts_of(config, section, edit, job.plan.timeline)
    key = section_key(config, section, edit, told, store, sees_picture=job.bundle.conditioner.sees_picture)
    stored = store.find(key)
    cached, count = stored is not None, len(job.plan.sections)
    if stored is None:
        latents = maker.make(section, edit, told, store, _steps(section.index, count, emit))
        with clock("store"):
            details = {"row": section_row(section), **asdict(edit)}
            stored = store.add(key, section.index, section.frames, latents, details)
    _place(job, store, stored)
    emit(
        SectionFinished(
            section=section.index,
            sections=count,
            frames=section.frames,
            latents=store.path(key),
            cached=cached,
            seconds=0.0 if cached else time.perf_counter() - begun,
            preview=preview(job.bundle.codec, store.fetch, section.frames),
        )
    )
    return stored


def _steps(section: int, sections: int, emit: Emit) -> OnStep:
    def on_step(done: int, steps: int) -> None:
        emit(Step(section=section, sections=sections, step=done - 1, steps=steps))

    return on_step


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


def _framed(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    return make()[:, None]
