"""From what was asked for on a command line to a suite that has passed every check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from framepack.errors import InputError, UnknownNameError
from framepack.evaluation.budget import BUDGETS
from framepack.evaluation.clips import users_clips
from framepack.evaluation.revisit import FEWEST
from framepack.evaluation.score import chosen_metrics
from framepack.evaluation.suite import Suite, bench_of, check_rows, is_world
from framepack.models.device import pick_device
from framepack.models.loading import load_bundle
from framepack.recipes.lab import SUITES, TITLES
from framepack.training.machine import cores


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was asked for.

    suite, budget: names. clips: in place of the budget's. only: rows; all where empty.
    others, prompts, trains, seed: see ``Suite``. metrics: by name; all that can be computed where empty.
    workers: None is one for each GPU, or each core.
    """

    suite: str
    model: str = "bundled"
    budget: str = "reduced"
    clips: int | None = None
    only: tuple[str, ...] = ()
    others: tuple[tuple[str, Path], ...] = ()
    prompts: Path | None = None
    trains: bool = True
    seed: int = 0
    metrics: tuple[str, ...] = ()
    device: str = "auto"
    workers: int | None = None


def chosen(choice: Choice) -> tuple[Suite, tuple[str, ...], dict[str, str]]:
    """The suite, a device for each of its workers, and by metric why it has no scores.

    Raises:
        UnknownNameError: no such suite, row, budget or metric. InputError: a model that cannot be trained so.
    """
    if choice.suite not in SUITES:
        raise UnknownNameError("suite", choice.suite, tuple(SUITES))
    bundle = load_bundle(choice.model)
    world = is_world(bundle)
    if choice.trains and not world:
        raise InputError(
            f"{bundle.spec.name} is no model of the procedural world, on which rows are fine-tuned: "
            "add --no-train"
        )
    if not world and choice.prompts is None:
        raise InputError(f"{bundle.spec.name} has no prompts of its own to be tried with: add --prompts DIR")
    for name, folder in choice.others:
        if not any(folder.glob("*.mp4")):
            raise InputError(f"row '{name}': '{folder}' has no .mp4 files: give a folder of videos")
    budget = BUDGETS[choice.budget]
    if choice.clips is not None:
        budget = replace(budget, clips=choice.clips, revisits=min(budget.revisits, choice.clips))
    size = bench_of(bundle, 1).section_size
    # The longest sections of all rows decide how long a clip is, so that all have as many as promised.
    longest = max(row.method.section_size for row in SUITES[choice.suite](bench_of(bundle, 1 + size)))
    frames = 1 + budget.sections * longest * bundle.spec.temporal_stride
    if frames < FEWEST:
        budget = replace(budget, revisits=0)
    rows = SUITES[choice.suite](bench_of(bundle, frames))
    names = [row.name for row in rows]
    for name in choice.only:
        if name not in names:
            raise UnknownNameError("row", name, tuple(names))
    if choice.prompts is not None:
        users_clips(choice.prompts, budget.clips)
    metrics, unavailable = chosen_metrics(
        choice.metrics, world=world and choice.prompts is None, size=bundle.spec.buckets[0]
    )
    suite = Suite(
        name=choice.suite,
        title=TITLES[choice.suite],
        rows=tuple(row for row in rows if not choice.only or row.name in choice.only),
        budget=budget,
        model=choice.model,
        digest=bundle.digest,
        size=bundle.spec.buckets[0],
        frames=frames,
        seed=choice.seed,
        metrics=metrics,
        world=world and choice.prompts is None,
        prompts=choice.prompts,
        trains=choice.trains,
        others=choice.others,
    )
    check_rows(suite)
    return suite, _devices(choice), unavailable


def _devices(choice: Choice) -> tuple[str, ...]:
    device = pick_device(choice.device)
    if device.type == "cuda" and device.index is None:
        found = torch.cuda.device_count()
        return tuple(f"cuda:{number % found}" for number in range(choice.workers or found))
    count = choice.workers or (cores() if device.type == "cpu" else 1)
    return (str(device),) * count
