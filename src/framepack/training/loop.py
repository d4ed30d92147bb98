"""Training a packed transformer on the procedural world, on one GPU or on the cores of a CPU."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel

from framepack.codecs.frame import FrameAutoencoder
from framepack.conditioning.lexicon import VOCABULARY
from framepack.conditioning.words import WordConditioner
from framepack.data.latents import LatentCache, build_cache
from framepack.errors import InputError
from framepack.models.bundle import Bundle, load_bundle, pick_device
from framepack.models.spec import ModelSpec
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.planning.method import Method
from framepack.training.attention import ExplicitAttention
from framepack.training.config import TrainConfig
from framepack.training.draw import draw_section
from framepack.training.masters import Masters
from framepack.training.methods import trained_methods
from framepack.training.objective import loss_of, make_batch


def build_modules(config: TrainConfig, channels: int) -> tuple[PackedWanTransformer3DModel, WordConditioner]:
    """A base with random weights, adopted, and a conditioner; or both from ``config.init``."""
    if config.init is not None:
        start = load_bundle(config.init)
        return start.transformer.requires_grad_(True), start.conditioner.requires_grad_(True)
    torch.manual_seed(config.seed)
    net = config.network
    base = WanTransformer3DModel(
        patch_size=net.base_kernel,
        num_attention_heads=net.heads,
        attention_head_dim=net.head_dim,
        in_channels=3 * channels + 2,
        out_channels=channels,
        text_dim=net.prompt_width,
        freq_dim=128,
        ffn_dim=net.ffn,
        num_layers=net.layers,
        rope_max_seq_len=64,
    )
    conditioner = WordConditioner(words=VOCABULARY, width=net.prompt_width, length=net.prompt_length)
    return PackedWanTransformer3DModel.adopt(base, net.kernels, prediction="sample"), conditioner


def lower_precision(model: PackedWanTransformer3DModel) -> None:
    """bfloat16 for all but what Wan keeps in float32."""
    kept = model._keep_in_fp32_modules or []
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.bfloat16()


def rate_scale(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, then linear decay to 2 % over the last ``config.decay`` of the steps."""
    left = (config.steps - step) / (config.decay * config.steps)
    return min((step + 1) / config.warmup, 1.0) * max(min(left, 1.0), 0.02)


def spec_of(config: TrainConfig, codec: FrameAutoencoder, methods: dict[str, Method]) -> ModelSpec:
    """The spec that a trained model is saved with."""
    return ModelSpec(
        name=config.name,
        family="wan",
        base_kernel=config.network.base_kernel,
        latent_channels=codec.config.channels,
        spatial_stride=codec.config.stride,
        temporal_stride=1,
        fps=config.fps,
        buckets=((config.cache.height, config.cache.width),),
        methods=methods,
        default_method="inverted",
        steps=8,
        guidance=1.5,
        solver="euler",
        shift=config.objective.shift,
    )


def save_average(
    folder: Path, config: TrainConfig, codec: FrameAutoencoder, masters: Masters, methods: dict[str, Method]
) -> None:
    """The averaged weights as a folder for ``framepack generate --model``; the codec stays float32."""
    model, conditioner = build_modules(config, codec.config.channels)
    with torch.no_grad():
        for prefix, module in (("model", model), ("conditioner", conditioner)):
            for name, parameter in module.named_parameters():
                parameter.data = masters.average[f"{prefix}.{name}"].cpu().bfloat16()
    spec = spec_of(config, codec, methods)
    bundle = Bundle(spec=spec, transformer=model, codec=codec, conditioner=conditioner, digest="")
    bundle.save(folder)


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
    """One process of a training run: cache, then steps from wherever the checkpoint stands."""
    if config.processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // config.processes))
    device = pick_device(config.device)
    with process_group(rank, config.processes, rendezvous):
        codec = FrameAutoencoder.from_pretrained(codec_folder).eval().requires_grad_(False).to(device)
        report = _printer(rank)
        build_cache(
            out / "cache",
            codec,
            config.cache,
            rank=rank,
            world_size=config.processes,
            on_shard=lambda done, total: report(f"cache {done}/{total} shards"),
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
        log = (out / "metrics.jsonl").open("a") if rank == 0 else None
        started, losses = time.monotonic(), []
        for step in range(done, config.steps):
            total = 0.0
            for turn in range(config.draws):
                rng = np.random.default_rng([config.seed, step, rank, turn])
                draw = draw_section(rng, config.draw, methods, config.cache.frames)
                batch = make_batch(rng, draw, config.micro, cache, conditioner, config.objective, channel_std)
                with ExplicitAttention() if device.type == "cpu" else contextlib.nullcontext():
                    loss = loss_of(rng, batch, model, conditioner, config.objective) / config.draws
                loss.backward()
                total += float(loss.detach())
            norm = masters.step(rate_scale(step, config), config.clip)
            losses.append(total)
            if log and (step + 1) % 10 == 0:
                pace = (step + 1 - done) / (time.monotonic() - started)
                row = {"step": step + 1, "loss": float(np.mean(losses)), "norm": norm, "steps_per_s": pace}
                losses.clear()
                log.write(json.dumps(row) + "\n")
                log.flush()
                left = (config.steps - step - 1) / pace / 60
                loss_now = f"loss {row['loss']:.4f}, {pace:.2f} steps/s, {left:.0f} min left"
                report(f"step {step + 1}/{config.steps} {loss_now}")
            if rank == 0 and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
                masters.save(state, step + 1)
                save_average(out / "model", config, codec, masters, methods)


def _printer(rank: int):
    def report(line: str) -> None:
        if rank == 0:
            print(line, flush=True)

    return report


def train(config: TrainConfig, out: Path, codec_folder: Path) -> Path:
    """Train, or go on training, and return the folder of the averaged model.

    Raises:
        InputError: ``out`` holds a run of another configuration (only ``steps`` may differ).
    """
    out.mkdir(parents=True, exist_ok=True)
    card = out / "train.json"
    wanted = json.loads(json.dumps(asdict(config)))
    if card.exists():
        held = json.loads(card.read_text())
        differing = [
            key for key in wanted if wanted[key] != held.get(key) and key not in ("steps", "save_every")
        ]
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
