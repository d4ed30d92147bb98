"""Fine-tuning any packed model on cached clips, by LoRA or whole."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from framepack.data.encoded import MANIFEST, write_json
from framepack.data.reader import EncodedClips
from framepack.errors import InputError
from framepack.models.bundle import Bundle
from framepack.models.codebook import Codebook
from framepack.models.draft import replace_files
from framepack.models.export import check_export, to_diffusers
from framepack.models.loading import digest_of, load_bundle, load_part, move_companions
from framepack.models.source import OWN_PARTS, Source, resolve_model
from framepack.models.spec import ModelSpec
from framepack.planning.method import Method
from framepack.training.codebook import fit_codebook, pixels_of
from framepack.training.corruption import check_noise
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.lora import FILE, attach, detach
from framepack.training.masters import Masters
from framepack.training.optimisers import adamw_named
from framepack.training.processes import Processes, processes
from framepack.training.progress import progress
from framepack.training.steps import take_steps
from framepack.training.trial import Trial

CARD = "train.json"
_FREE = ("steps", "samples", "save_every", "log_every", "tensorboard", "merge", "diffusers", "device")
"""What may differ where a run goes on."""


def finetune(config: FineTuneConfig, out: Path, model: str | Source, data: Path) -> Path:
    """Fine-tune, or go on, and return what is for use: a LoRA file, or a model folder.

    Under torchrun the processes share the model and the draws of each step; all of them must have ``out`` and
    what is read at the same places.

    Writes into ``out``: train.json, metrics.jsonl, state.safetensors (to resume), samples/, the report where
    clips are held out (see `training.report`), and the LoRA (see `save_lora`) or model/; at the end, as
    configured, model/ with the LoRA in it, and diffusers/transformer.

    Args:
        model: as ``load_bundle``. data: folder of a cache of encoded clips.

    Raises:
        InputError: model, clips and configuration do not go together; ``out`` holds another run; a loss that
            is not finite; processes that cannot share it. ModelError: a model that cannot be loaded.
            OutputError: a full disk, after which what was saved before is whole.
    """
    source = resolve_model(model) if isinstance(model, str) else model
    with processes(config.device) as team:
        return _finetune(config, out, source, data, team)


def _finetune(config: FineTuneConfig, out: Path, source: Source, data: Path, team: Processes) -> Path:
    device, dtype, adamw = team.device, getattr(torch, config.dtype), adamw_named(config.optimiser)
    team.share(config.draws, config.micro)
    methods = taught_methods(config, source.spec)
    section = max(method.section_size for method in methods.values())
    clips = EncodedClips(data, device, held_out=config.held_out, section=section)
    check_clips(clips, source.spec, methods)
    source = source.complete()
    card = _card(out, config, digest_of(source), data)
    # A model that several processes share need not fit on a device.
    bundle = load_bundle(source, device if team.count == 1 else "cpu", dtype)
    if OWN_PARTS[1] in source.parts:  # in full precision, as caches are made with it and as it is saved
        bundle = replace(bundle, conditioner=load_part(OWN_PARTS[1], source.parts[OWN_PARTS[1]]))
    clips.check(bundle.codec, bundle.conditioner)
    bundle = prepare(config, bundle, clips, methods)
    if team.rank == 0:
        write_json(out / CARD, card)
    settings: dict[str, Any] = {
        "rate": config.rate,
        "weight_decay": config.weight_decay,
        "ema": config.ema,
        "adamw": adamw,
    }
    masters: Masters
    if team.count == 1:
        masters = Masters({"model": bundle.transformer}, muon=False, **settings)
    else:
        from framepack.training.sharded import ShardedMasters, shard

        move_companions(bundle, device)
        original = shard(bundle.transformer, team, dtype)
        masters = ShardedMasters({"model": bundle.transformer}, processes=team, original=original, **settings)
    trial = Trial.of(config, out, bundle, clips, methods)
    with progress(shown=team.rank == 0) as bars:
        if trial is not None:
            trial.before(bars)
        take_steps(config, out, bundle, clips, methods, masters, team, bars.task("training"))
        with masters.averaged():
            if trial is not None:
                trial.after(bars)
            whole = masters.gathered(bundle.transformer)
            if whole is not None:
                _finish(config, out, replace(bundle, transformer=whole), methods)
    return out / ("model" if config.lora is None else FILE)


def taught_methods(config: FineTuneConfig, spec: ModelSpec) -> dict[str, Method]:
    """The methods that are drawn, by their names in ``config.draw``.

    Raises:
        UnknownNameError, NotationError: a name that is none. InputError: kernels that the model cannot have,
        history that is ranked by its latents, or noise on noise.
    """
    methods = {name: spec.method(name, untrained=True) for name in config.draw.taught}
    for method in methods.values():
        if method.importance.kind != "time":
            raise InputError(
                f"importance '{method.importance.kind}' of method {method}: train with importance by time"
            )
        check_noise(method, config.objective.corruption)
    if config.codewords is not None:
        methods = {name: replace(method, discretized=True) for name, method in methods.items()}
    if config.isolated:
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
    make_trainable(transformer, spec, config)
    if config.diffusers:
        check_export(transformer.config)
    codebook = bundle.codebook
    if config.codewords is not None:
        pixels = pixels_of(clips, config.codewords, config.seed)
        codebook = Codebook.of(fit_codebook(pixels, config.codewords, config.seed))
    if codebook is None and any(method.discretized for method in methods.values()):
        raise InputError(f"methods with discretised history, and {spec.name} has no codebook: set codewords")
    if config.lora is None:
        old = {} if config.isolated or config.codewords is not None else spec.methods
        default = spec.default_method if spec.default_method in old | methods else next(iter(methods))
        spec = replace(spec, name=config.name, methods=old | methods, default_method=default)
    return replace(bundle, spec=spec, codebook=codebook)


def make_trainable(transformer: Any, spec: ModelSpec, config: FineTuneConfig) -> None:
    """Have a transformer that has all its kernels train what the configuration says, and as it says.

    Raises:
        InputError: settings that it cannot be trained by. ModelError: history that it cannot isolate.
    """
    if transformer.config.get("guidance_embeds") and config.objective.guidance is None:
        raise InputError(f"{spec.name} takes guidance as an input: set objective.guidance, like 10")
    if config.isolated:
        transformer.isolate(causal=config.causal_history)
    if config.lora is not None:
        attach(transformer, spec.family, config.lora, config.seed)
    else:
        transformer.requires_grad_(True)
    if config.checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()


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


def _finish(config: FineTuneConfig, out: Path, bundle: Bundle, methods: dict[str, Method]) -> None:
    """What is saved once, at the end; the transformer is not to be trained on after it."""
    if config.merge:
        detach(bundle.transformer)
        bundle.save(out / "model")
    if config.diffusers:
        zero = all(method.history_timestep == "zero" for method in methods.values())
        theirs = to_diffusers(bundle.transformer, zero_history_timestep=zero)
        replace_files(out / "diffusers", lambda draft: theirs.save_pretrained(draft / "transformer"))
