"""Fine-tuning any packed model on cached clips, by LoRA or whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framepack.data.encoded import MANIFEST, write_json
from framepack.data.reader import EncodedClips
from framepack.errors import InputError
from framepack.models.attention import ExplicitAttention
from framepack.models.bundle import Bundle
from framepack.models.codebook import Codebook
from framepack.models.device import pick_device
from framepack.models.draft import replace_files
from framepack.models.export import check_export, to_diffusers
from framepack.models.loading import digest_of, load_bundle
from framepack.models.source import Source, resolve_model
from framepack.models.spec import ModelSpec
from framepack.planning.method import Method
from framepack.training.codebook import fit_codebook, pixels_of
from framepack.training.corruption import own_history
from framepack.training.draw import draw_section
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.flow_matching import flow_loss, show
from framepack.training.log import Log
from framepack.training.loop import rate_scale
from framepack.training.lora import FILE, attach, detach, save_lora
from framepack.training.masters import Masters
from framepack.training.progress import Advance, progress
from framepack.training.samples import write_samples
from framepack.training.trial import Trial

STATE, CARD = "state.safetensors", "train.json"
_FREE = ("steps", "samples", "save_every", "log_every", "tensorboard", "merge", "diffusers", "device")
"""What may differ where a run goes on."""


def finetune(config: FineTuneConfig, out: Path, model: str | Source, data: Path) -> Path:
    """Fine-tune, or go on, and return what is for use: a LoRA file, or a model folder.

    Writes into ``out``: train.json, metrics.jsonl, state.safetensors (to resume), samples/, the report where
    clips are held out (see `training.report`), and the LoRA (see `save_lora`) or model/; at the end, as
    configured, model/ with the LoRA in it, and diffusers/transformer.

    Args:
        model: as ``load_bundle``. data: folder of a cache of encoded clips.

    Raises:
        InputError: model, clips and configuration do not go together; ``out`` holds another run; a loss that
            is not finite. ModelError: a model that cannot be loaded. OutputError: a full disk, after which
            what was saved before is whole.
    """
    source = resolve_model(model) if isinstance(model, str) else model
    device, dtype = pick_device(config.device), getattr(torch, config.dtype)
    methods = taught_methods(config, source.spec)
    section = max(method.section_size for method in methods.values())
    clips = EncodedClips(data, device, held_out=config.held_out, section=section)
    check_clips(clips, source.spec, methods)
    source = source.complete()
    card = _card(out, config, digest_of(source), data)
    bundle = load_bundle(source, device, dtype)
    clips.check(bundle.codec, bundle.conditioner)
    bundle = prepare(config, bundle, clips, methods)
    write_json(out / CARD, card)
    masters = Masters(
        {"model": bundle.transformer},
        rate=config.rate,
        weight_decay=config.weight_decay,
        ema=config.ema,
        muon=False,
    )
    trial = Trial.of(config, out, bundle, clips, methods)
    with progress() as bars:
        if trial is not None:
            trial.before(bars)
        _take_steps(config, out, bundle, clips, methods, masters, bars.task("training"))
        with masters.averaged():
            if trial is not None:
                trial.after(bars)
            return _finish(config, out, bundle, methods)


def taught_methods(config: FineTuneConfig, spec: ModelSpec) -> dict[str, Method]:
    """The methods that are drawn, by their names in ``config.draw``.

    Raises:
        UnknownNameError, NotationError: a name that is none. InputError: kernels that the model cannot have,
        or history that is ranked by its latents.
    """
    methods = {name: spec.method(name, untrained=True) for name in config.draw.taught}
    for method in methods.values():
        if method.importance.kind != "time":
            raise InputError(
                f"importance '{method.importance.kind}' of method {method}: train with importance by time"
            )
    if config.codewords is not None:
        methods = {name: replace(method, discretized=True) for name, method in methods.items()}
    if config.isolated_history:
        methods = {name: replace(method, history_timestep="zero") for name, method in methods.items()}
    return methods


def check_clips(clips: EncodedClips, spec: ModelSpec, methods: dict[str, Method]) -> None:
    """See that clips can teach a model.

    Raises:
        InputError: a model of another objective than plain flow matching, clips that are shorter than a
            section.
    """
    if spec.pyramid is not None:
        raise InputError(f"{spec.name} is trained in a pyramid of sizes, which is not offered: use its base")
    if spec.decode == "section":
        raise InputError(
            f"the codec of {spec.name} takes a section at a time, a cache has clips coded as one video: "
            "train a model whose codec takes whole videos"
        )
    size = max(method.section_size for method in methods.values())
    if clips.longest < size:
        longest = max(entry.latents for entry in clips.entries)
        held = f" of which {clips.held_out:.0%} are held out," if clips.held_out else ""
        raise InputError(
            f"the longest clip of '{clips.folder}' has {longest} latents,{held} a section has {size}: "
            f"make longer clips{', or lower held_out' if held else ''}"
        )


def prepare(
    config: FineTuneConfig, bundle: Bundle, clips: EncodedClips, methods: dict[str, Method]
) -> Bundle:
    """The model with what it lacks for its methods, ready to be trained.

    Raises:
        InputError: methods or settings that it cannot be trained by. ModelError: no class of diffusers' for
            it, though one is asked for.
    """
    transformer, spec = bundle.transformer, bundle.spec
    lacking = {kernel for method in methods.values() for kernel in method.schedule.kernels}
    lacking = {kernel for kernel in lacking if not transformer.packing_kernels.has(kernel)}
    if lacking and config.lora is not None:
        raise InputError(
            f"methods with kernels {sorted(lacking)}, which {spec.name} has not, and a LoRA cannot bring: "
            "set lora=null, or adopt the base with them"
        )
    transformer.add_kernels(sorted(lacking))
    if config.isolated_history:
        transformer.isolate()
    if config.diffusers:
        check_export(transformer.config)
    if transformer.config.get("guidance_embeds") and config.objective.guidance is None:
        raise InputError(f"{spec.name} takes guidance as an input: set objective.guidance, like 10")
    codebook = bundle.codebook
    if config.codewords is not None:
        pixels = pixels_of(clips, config.codewords, config.seed)
        codebook = Codebook.of(fit_codebook(pixels, config.codewords, config.seed))
    if codebook is None and any(method.discretized for method in methods.values()):
        raise InputError(f"methods with discretised history, and {spec.name} has no codebook: set codewords")
    if config.lora is not None:
        attach(transformer, spec.family, config.lora, config.seed)
    else:
        transformer.requires_grad_(True)
        old = {} if config.isolated_history or config.codewords is not None else spec.methods
        default = spec.default_method if spec.default_method in old | methods else next(iter(methods))
        spec = replace(spec, name=config.name, methods=old | methods, default_method=default)
    if config.checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    return replace(bundle, spec=spec, codebook=codebook)


def _card(out: Path, config: FineTuneConfig, model: str, data: Path) -> dict[str, Any]:
    """What is to be in train.json, for a model of this digest.

    Raises:
        InputError: the folder holds a run of another configuration, model or cache.
    """
    cache = sha256((data / MANIFEST).read_bytes()).hexdigest()
    wanted = json.loads(json.dumps(asdict(config) | {"model": model, "data": cache}))
    if (out / CARD).exists():
        held = json.loads((out / CARD).read_text())
        differing = [key for key in wanted if wanted[key] != held.get(key) and key not in _FREE]
        if differing:
            raise InputError(f"'{out}' holds a run with other {', '.join(differing)}: name another folder")
    return wanted


def _take_steps(
    config: FineTuneConfig,
    out: Path,
    bundle: Bundle,
    clips: EncodedClips,
    methods: dict[str, Method],
    masters: Masters,
    advance: Advance,
) -> None:
    """The steps that are missing; on disk rows of the log, samples, what is for use and the state."""
    transformer, spec = bundle.transformer, bundle.spec
    objective, dtype = config.objective, getattr(torch, config.dtype)
    state = out / STATE
    done = masters.load(state) if state.exists() else 0
    log, board = Log(out / "metrics.jsonl", done, rank=0), _board(config, out, done)
    spread = clips.channel_std()
    centroids = None if bundle.codebook is None else bundle.codebook.centroids.to(clips.device)
    shown_by = next(iter(methods.values()))
    # On CPUs the probabilities are kept and the fused kernel is left alone; not with checkpointing, which
    # computes blocks again inside backward(), where PyTorch has no such modes.
    explicit = clips.device.type == "cpu" and not config.checkpointing
    attention = ExplicitAttention if explicit else contextlib.nullcontext
    for step in range(done, config.steps):
        losses = []
        for turn in range(config.draws):
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
            with attention():
                loss = flow_loss(rng, shown, transformer, objective, spec.base_kernel, dtype) / config.draws
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
                _save(config, out, bundle)
            masters.save(state)
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
                )
        advance(finished, config.steps)


def _save(config: FineTuneConfig, out: Path, bundle: Bundle) -> None:
    """What is for use, from the weights that the transformer has now."""
    if config.lora is not None:
        save_lora(bundle.transformer, config.lora, out)
    else:
        bundle.save(out / "model")


def _finish(config: FineTuneConfig, out: Path, bundle: Bundle, methods: dict[str, Method]) -> Path:
    """What is saved once, at the end; the transformer is not to be trained on after it."""
    if config.merge:
        detach(bundle.transformer)
        bundle.save(out / "model")
    if config.diffusers:
        zero = all(method.history_timestep == "zero" for method in methods.values())
        theirs = to_diffusers(bundle.transformer, zero_history_timestep=zero)
        replace_files(out / "diffusers", lambda draft: theirs.save_pretrained(draft / "transformer"))
    return out / ("model" if config.lora is None else FILE)


def _board(config: FineTuneConfig, out: Path, done: int) -> Callable[[int, dict[str, float]], None]:
    """(step, values by name) -> TensorBoard's files, if asked for.

    Raises:
        InputError: it is not installed.
    """
    if not config.tensorboard:
        return lambda step, values: None
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
