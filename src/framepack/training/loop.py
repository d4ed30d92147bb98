"""Training a packed transformer on the procedural world, on one GPU or on the cores of a CPU."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from framepack.data.latents import LatentCache, build_cache
from framepack.errors import InputError
from framepack.models.bundle import load_part, pick_device
from framepack.training.attention import ExplicitAttention
from framepack.training.check import sample_sheet
from framepack.training.config import TrainConfig
from framepack.training.draw import draw_section
from framepack.training.masters import Masters
from framepack.training.methods import trained_methods
from framepack.training.network import build_modules, lower_precision, save_average
from framepack.training.objective import loss_of, make_batch
from framepack.training.progress import progress


def rate_scale(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, then linear decay to 2 % over the last ``config.decay`` of the steps."""
    left = (config.steps - step) / (config.decay * config.steps)
    return min((step + 1) / config.warmup, 1.0) * max(min(left, 1.0), 0.02)


@contextlib.contextmanager
def process_group(rank: int, processes: int, rendezvous: Path) -> Iterator[None]:
    """Gloo over a file, so that no port has to be free."""
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    try:
        yield
    finally:
        if processes > 1:
            dist.destroy_process_group()


def worker(rank: int, out: Path, config: TrainConfig, codec_folder: Path, rendezvous: Path) -> None:
    """One process of a training run: the cache, then steps from wherever the checkpoint stands."""
    if config.processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // config.processes))
    device = pick_device(config.device)
    codec = load_part("codec", codec_folder).to(device)
    with process_group(rank, config.processes, rendezvous), progress(shown=rank == 0) as bars:
        with bars.task("encoding clips") as advance:
            build_cache(
                out / "cache",
                codec,
                config.cache,
                rank=rank,
                world_size=config.processes,
                # A GPU encodes faster than one core renders; on a CPU every core has a rank already.
                workers=0 if device.type == "cpu" else max(1, (os.cpu_count() or 2) - 2),
                on_shard=advance,
            )
        if config.processes > 1:
            dist.barrier()
        cache = LatentCache(out / "cache", config.cache, device)
        model, conditioner = build_modules(config, codec.config.channels)
        model.to(device).train()
        conditioner.to(device).train()
        masters = Masters(
            {"model": model, "conditioner": conditioner},
            rate=config.rate,
            weight_decay=config.weight_decay,
            ema=config.ema,
        )
        lower_precision(model)
        state = out / "state.safetensors"
        done = masters.load(state) if state.exists() else 0
        methods = trained_methods(config)
        channel_std = cache.channel_std()
        # On CPUs the probabilities are kept and the fused kernel is left alone.
        attention = ExplicitAttention if device.type == "cpu" else contextlib.nullcontext
        with bars.task("training") as advance:
            for step in range(done, config.steps):
                loss = 0.0
                for turn in range(config.draws):
                    rng = np.random.default_rng([config.seed, step, rank, turn])
                    draw = draw_section(rng, config.draw, methods, config.cache.frames)
                    batch = make_batch(
                        rng, draw, config.micro, cache, conditioner, config.objective, channel_std
                    )
                    with attention():
                        part = loss_of(rng, batch, model, conditioner, config.objective) / config.draws
                    part.backward()
                    loss += float(part.detach())
                norm = masters.step(rate_scale(step, config), config.clip)
                if rank == 0:
                    row = {"step": step + 1, "loss": loss, "norm": norm}
                    with (out / "metrics.jsonl").open("a") as log:
                        log.write(json.dumps(row) + "\n")
                advance(step + 1, config.steps)
                last = step + 1 == config.steps
                if rank == 0 and (last or (step + 1) % config.save_every == 0):
                    masters.save(state)
                    bundle = save_average(out / "model", config, codec, masters, methods)
                    if last or (step + 1) % config.sheet_every == 0:
                        sample_sheet(bundle, out / f"sheet-{step + 1:06d}.png")


def train(config: TrainConfig, out: Path, codec_folder: Path) -> Path:
    """Train, or go on training, and return the folder of the averaged model.

    Writes into ``out``: train.json, cache/, metrics.jsonl, state.safetensors (to resume), model/, and
    sheets of held-out samples.

    Raises:
        InputError: ``out`` holds a run of another configuration; only how long, and how often it is
            saved, may change.
    """
    out.mkdir(parents=True, exist_ok=True)
    card = out / "train.json"
    wanted = json.loads(json.dumps(asdict(config)))
    if card.exists():
        held = json.loads(card.read_text())
        free = ("steps", "save_every", "sheet_every")
        differing = [key for key in wanted if wanted[key] != held.get(key) and key not in free]
        if differing:
            raise InputError(f"'{out}' holds a run with other {', '.join(differing)}: name another folder")
    card.write_text(json.dumps(wanted, indent=2))
    rendezvous = out / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    if config.processes == 1:
        worker(0, out, config, codec_folder, rendezvous)
    else:
        torch.multiprocessing.spawn(
            worker, (out, config, codec_folder, rendezvous), nprocs=config.processes, join=True
        )
    return out / "model"
