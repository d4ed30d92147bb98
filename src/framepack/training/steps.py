"""The steps of a fine-tuning run, on one process or on several that share them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from framepack.data.reader import EncodedClips
from framepack.errors import InputError
from framepack.models.attention import ExplicitAttention
from framepack.models.bundle import Bundle
from framepack.planning.method import Method
from framepack.training.corruption import own_history
from framepack.training.draw import draw_section
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.flow_matching import flow_loss, show
from framepack.training.log import Log
from framepack.training.loop import rate_scale
from framepack.training.lora import save_lora
from framepack.training.masters import Masters
from framepack.training.processes import Processes
from framepack.training.progress import Advance
from framepack.training.samples import write_samples

STATE = "state.safetensors"
"""What a run goes on from; the files of several processes have longer names, see `training.state`."""


def take_steps(
    config: FineTuneConfig,
    out: Path,
    bundle: Bundle,
    clips: EncodedClips,
    methods: dict[str, Method],
    masters: Masters,
    processes: Processes,
    advance: Advance,
) -> None:
    """The steps that are missing; on disk rows of the log, samples, what is for use and the state.

    A draw is of (seed, step, turn) alone. Process r of n takes the turns r, r + n, ... of each step, so that
    all of them together see what one process would.

    Raises:
        InputError: a loss that is not finite, or draws that cannot be shared evenly.
    """
    transformer, spec = bundle.transformer, bundle.spec
    objective, dtype = config.objective, getattr(torch, config.dtype)
    draws, first = processes.share(config.draws, config.micro), processes.rank == 0
    done = masters.load(out / STATE)
    log = Log(out / "metrics.jsonl", done, rank=processes.rank)
    board = _board(config, out, done) if first else _nothing
    spread = clips.channel_std()
    centroids = None if bundle.codebook is None else bundle.codebook.centroids.to(clips.device)
    shown_by = next(iter(methods.values()))
    for step in range(done, config.steps):
        losses = []
        for turn in range(processes.rank, config.draws, processes.count):
            rng = np.random.default_rng([config.seed, step, turn])
            draw = draw_section(rng, config.draw, methods, clips.longest)
            own = None
            if rng.random() < objective.rollout.share:
                own = own_history(
                    rng,
                    transformer,
                    objective.rollout,
                    shift=objective.shift,
                    base_kernel=spec.base_kernel,
                    device=clips.device,
                    dtype=dtype,
                    centroids=centroids,
                )
            # Only some processes make a history, and not all of as many sections.
            alone = masters.at_hand(own is not None) if objective.rollout.share else contextlib.nullcontext()
            with alone:
                shown = show(
                    rng,
                    draw,
                    config.micro,
                    clips,
                    objective,
                    spread,
                    aligned=bool(transformer.config.aligned),
                    from_start=spec.temporal_stride > 1,
                    make_history=own,
                    centroids=centroids,
                )
            with attention_in(config, clips.device):
                loss = flow_loss(rng, shown, transformer, objective, spec.base_kernel, dtype) / draws
            loss.backward()
            losses.append(loss.detach())
        log.add(torch.stack(losses).sum(), masters.step(rate_scale(step, config), config.clip))
        finished = step + 1
        saved, told = (
            finished == config.steps or finished % every == 0
            for every in (config.save_every, config.log_every)
        )
        if saved or told:
            loss_now, norm = log.write(finished)
            if not np.isfinite(loss_now + norm):
                raise InputError(
                    f"the loss is {loss_now:g} and its gradient {norm:g} at step {finished}: lower rate, and "
                    "run again from what was saved before"
                )
            board(finished, {"loss": loss_now, "norm": norm})
        if saved:
            # The state last: whoever finds a step in it finds what is for use too.
            with masters.averaged():
                whole = masters.gathered(transformer)
                if whole is not None:
                    _save(config, out, replace(bundle, transformer=whole))
            masters.save(out / STATE)
        if config.samples.every is not None and finished % config.samples.every == 0:
            with masters.averaged():
                write_samples(
                    bundle,
                    clips,
                    methods.get(spec.default_method, shown_by),
                    config.samples,
                    objective,
                    out / "samples",
                    finished,
                    dtype=dtype,
                    centroids=centroids,
                    write=first,
                )
        advance(finished, config.steps)


def attention_in(config: FineTuneConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which attention of a step is fastest."""
    # On CPUs the probabilities are kept and the fused kernel is left alone; not with checkpointing, which
    # computes blocks again inside backward(), where PyTorch has no such modes.
    explicit = device.type == "cpu" and not config.checkpointing
    return ExplicitAttention() if explicit else contextlib.nullcontext()


def _save(config: FineTuneConfig, out: Path, bundle: Bundle) -> None:
    """What is for use, from the weights that the transformer has now."""
    if config.lora is not None:
        save_lora(bundle.transformer, config.lora, out)
    else:
        bundle.save(out / "model")


def _board(config: FineTuneConfig, out: Path, done: int) -> Callable[[int, dict[str, float]], None]:
    """(step, values by name) -> TensorBoard's files, if asked for.

    Raises:
        InputError: it is not installed.
    """
    if not config.tensorboard:
        return _nothing
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard is not installed: pip install tensorboard, or leave it out") from error
    writer = SummaryWriter(out / "tensorboard", purge_step=done + 1)

    def tell(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return tell


def _nothing(step: int, values: dict[str, float]) -> None:
    """Where no board is asked for, or another process has it."""
