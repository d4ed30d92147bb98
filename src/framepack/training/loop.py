"""Training a packed transformer on the procedural world, on one GPU or on the cores of a CPU."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from framepack.codecs.frame import FrameAutoencoder
from framepack.data.latents import LatentCache, build_cache, claim_cache
from framepack.errors import InputError
from framepack.models.attention import ExplicitAttention
from framepack.models.codebook import Codebook, load_codebook
from framepack.models.device import pick_device
from framepack.models.loading import load_part
from framepack.training.check import sample_sheet
from framepack.training.codebook import fit_codebook, pixels_of
from framepack.training.config import TrainConfig
from framepack.training.corruption import own_history
from framepack.training.draw import draw_section
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.log import Log
from framepack.training.machine import cores
from framepack.training.masters import Masters
from framepack.training.methods import trained_methods
from framepack.training.network import averaged, build_modules, check_start, lower_precision
from framepack.training.objective import loss_of, make_batch
from framepack.training.progress import Advance, progress


def rate_scale(step: int, config: TrainConfig | FineTuneConfig) -> float:
    """Linear warm-up, constant, then linear decay to 2 % over the last ``config.decay`` of the steps."""
    left = (config.steps - step) / (config.decay * config.steps) if config.decay else 1.0
    return min((step + 1) / config.warmup, 1.0) * max(min(left, 1.0), 0.02)


@contextlib.contextmanager
def process_group(rank: int, processes: int, rendezvous: Path) -> Iterator[None]:
    """Gloo over a file, so that no port has to be free. ``rendezvous`` is absolute."""
    if processes > 1:
        dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=processes)
    try:
        yield
    finally:
        if processes > 1:
            dist.destroy_process_group()


def worker(
    rank: int,
    out: Path,
    config: TrainConfig,
    codec_folder: Path,
    rendezvous: Path,
    on_step: Advance | None = None,
) -> None:
    """One process of a training run: the cache, then steps from wherever the checkpoint stands."""
    if config.processes > 1:
        torch.set_num_threads(max(1, cores() // config.processes))
    device = device_of(config)
    codec = load_part("codec", codec_folder).to(device)
    with (
        process_group(rank, config.processes, rendezvous),
        progress(shown=rank == 0 and on_step is None) as bars,
    ):
        build_cache(
            out / "cache",
            codec,
            config.cache,
            rank=rank,
            world_size=config.processes,
            # A GPU encodes faster than one core renders; on a CPU every core has a rank already.
            workers=0 if device.type == "cpu" else max(1, cores() - 2),
            on_shard=bars.task("encoding clips"),
        )
        if config.processes > 1:
            dist.barrier()
        cache = LatentCache(out / "cache", config.cache, device)
        if config.codewords is not None:
            if rank == 0:
                claim_codebook(out / "codebook", config.codewords, cache, config.seed)
            if config.processes > 1:
                dist.barrier()
        take_steps(rank, out, config, codec, cache, on_step or bars.task("training"))


def device_of(config: TrainConfig) -> torch.device:
    """Where training runs: several processes share the cores of a CPU."""
    return torch.device("cpu") if config.processes > 1 else pick_device(config.device)


def claim_codebook(folder: Path, size: int, cache: LatentCache, seed: int) -> None:
    """Fit the codebook of a run and save it, if it is not there."""
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.part")
        Codebook.of(fit_codebook(pixels_of(cache, size, seed), size, seed)).save_pretrained(draft)
        draft.rename(folder)


def take_steps(
    rank: int, out: Path, config: TrainConfig, codec: FrameAutoencoder, cache: LatentCache, advance: Advance
) -> None:
    """The steps that are missing, with rows in the log, and the averaged model, sheets and state on disk."""
    model, conditioner = build_modules(config, codec.config.channels)
    model.to(cache.device).train()
    conditioner.to(cache.device).train()
    masters = Masters(
        {"model": model, "conditioner": conditioner},
        rate=config.rate,
        weight_decay=config.weight_decay,
        ema=config.ema,
    )
    lower_precision(model)
    state = out / "state.safetensors"
    done = masters.load(state) if state.exists() else 0
    log = Log(out / "metrics.jsonl", done, rank=rank)
    methods, channel_std, objective = trained_methods(config), cache.channel_std(), config.objective
    codebook = None if config.codewords is None else load_codebook(out / "codebook")
    centroids = None if codebook is None else codebook.centroids.to(cache.device)
    # On CPUs the probabilities are kept and the fused kernel is left alone.
    attention = ExplicitAttention if cache.device.type == "cpu" else contextlib.nullcontext
    for step in range(done, config.steps):
        losses = []
        for turn in range(config.draws):
            rng = np.random.default_rng([config.seed, step, rank, turn])
            draw = draw_section(rng, config.draw, methods, config.cache.frames)
            own = None
            if objective.rollout.share and rng.random() < objective.rollout.share:
                own = own_history(
                    rng,
                    model,
                    objective.rollout,
                    shift=objective.shift,
                    base_kernel=config.network.base_kernel,
                    device=cache.device,
                    dtype=model.patch_embedding.weight.dtype,
                    centroids=centroids,
                )
            batch = make_batch(
                rng,
                draw,
                config.micro,
                cache,
                conditioner,
                objective,
                channel_std,
                make_history=own,
                centroids=centroids,
            )
            with attention():
                loss = loss_of(rng, batch, model, conditioner, objective) / config.draws
            loss.backward()
            losses.append(loss.detach())
        log.add(torch.stack(losses).sum(), masters.step(rate_scale(step, config), config.clip))
        finished = step + 1
        saved, drawn, told = (
            every > 0 and (finished == config.steps or finished % every == 0)
            for every in (config.save_every, config.sheet_every, config.log_every)
        )
        if saved or told:
            log.write(finished)
        if rank == 0 and (saved or drawn):
            bundle = averaged(config, codec, model, conditioner, masters, codebook)
            if saved:
                # The state last: whoever finds a step in it finds its model too.
                bundle.save(out / "model")
                masters.save(state)
            if drawn:
                sample_sheet(bundle, out / f"sheet-{finished:06d}.png")
        advance(finished, config.steps)


def train(config: TrainConfig, out: Path, codec_folder: Path, *, on_step: Advance | None = None) -> Path:
    """Train, or go on training, and return the folder of the averaged model.

    Writes into ``out``: train.json, cache/, metrics.jsonl, state.safetensors (to resume), model/, and
    sheets of held-out samples.

    Args:
        on_step: told (finished steps, all steps) of a run on one process, in place of the bars.

    Raises:
        InputError: ``out`` holds a run of another configuration (only how long it is, and how often it is
            saved and told of, may change), or no training can begin so.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    codec = load_part("codec", codec_folder)
    card = out / "train.json"
    # A model to start from is its weights, wherever they lie.
    decided = {"init": check_start(config, codec), "cache": config.cache.to_json()}
    wanted = json.loads(json.dumps(asdict(config) | decided))
    if card.exists():
        held = json.loads(card.read_text())
        free = ("steps", "save_every", "sheet_every", "log_every")
        differing = [key for key in wanted if wanted[key] != held.get(key) and key not in free]
        if differing:
            raise InputError(f"'{out}' holds a run with other {', '.join(differing)}: name another folder")
    claim_cache(out / "cache", config.cache)
    unfinished = card.with_suffix(".tmp")
    unfinished.write_text(json.dumps(wanted, indent=2))
    unfinished.replace(card)
    rendezvous = out / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    if config.processes == 1:
        worker(0, out, config, codec_folder, rendezvous, on_step)
    else:
        torch.multiprocessing.spawn(
            worker, (out, config, codec_folder, rendezvous), nprocs=config.processes, join=True
        )
    return out / "model"
