"""From a request to a run that has passed every check."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

import torch

from framepack.errors import InputError
from framepack.generation.config import RunConfig, resolve
from framepack.generation.devices import check_devices
from framepack.generation.placement import load_placed, policy_for
from framepack.generation.places import Places
from framepack.generation.request import GenerateRequest
from framepack.generation.run import Known, PreparedRun
from framepack.generation.selection import Selection, select
from framepack.generation.shortage import TILED, tiled_if_short, told_if_short
from framepack.models.attention import check_attention
from framepack.models.bundle import Bundle, compiled
from framepack.models.codebook import check_codebook
from framepack.models.device import pick_device, pick_dtype
from framepack.models.lora import Lora, apply_loras, digest, remove_loras
from framepack.models.source import CODEBOOK, resolve_model
from framepack.models.step_cache import StepCache, check_stages
from framepack.resources.policy import SPLIT
from framepack.sampling.solvers import check_solver

HELD = 2
"""Latent frames for which a picture is held before its own, where a codec looks back."""
LOW_PSNR = 25.0
"""dB below which a picture has visibly lost something in the codec."""


def prepare(request: GenerateRequest, bundle: Bundle | None = None) -> PreparedRun:
    """Check a request and load what it needs; nothing is written.

    What can be refused without weights is refused before they are loaded.

    Args:
        bundle: a loaded model, in place of ``request.model``, ``parts``, ``device``, ``dtype``, ``compile``
            and ``attention``.

    Raises:
        InputError, ModelError, OutputError: see ``select``, ``load_bundle`` and ``Places.check``.
    """
    begun = time.perf_counter()
    source = resolve_model(request.model, request.parts) if bundle is None else None
    spec = bundle.spec if source is None else source.spec  # type: ignore[union-attr]
    selection = select(request, spec)
    check_solver(request.solver or spec.solver, spec)
    if request.step_cache is not None:
        check_stages(StepCache.parse(request.step_cache).kind, spec)
    if source is not None:
        # Of a model that is still on the hub the parts are unknown.
        held = source.repository is not None or CODEBOOK in source.parts
        check_codebook(selection.method, spec.name, present=held)
        device = pick_device(request.device)
        policy = policy_for(request, source, selection, device)
        attention = check_attention(request.attention, device)
        if request.devices > 1 and policy.placement != SPLIT:
            check_devices(request.devices, device, source, attention)
        dtype = pick_dtype(request.dtype, device)
        bundle = load_placed(source, policy, device, dtype, request.devices)
        bundle = replace(bundle, attention=attention)
        if request.compile:
            bundle = compiled(bundle)
    elif request.devices > 1:
        raise InputError(
            f"{request.devices} devices: a loaded model stays on the one it is on, give the model by its name"
        )
    assert bundle is not None
    check_codebook(selection.method, spec.name, present=bundle.codebook is not None)
    config = resolve(request, selection, bundle)
    places = Places.of(config.job, request.out, request.workdir)
    places.check(config, overwrite=request.overwrite)
    short: list[str] = []
    with told_if_short(config, bundle, places.workdir):
        encode = partial(encode_given, selection, bundle)
        known, faults = tiled_if_short(bundle, encode, lambda: short.append(TILED))
    told = prompt_warnings(request, config, bundle)
    # Last of all: a request that is refused leaves the model as it is.
    bundle.transformer.add_kernels(selection.method.schedule.kernels)
    bundle, left_out = with_loras(bundle, request.loras)
    return PreparedRun(
        config=config,
        method=selection.method,
        plan=selection.plan,
        context_tokens=selection.context_tokens,
        bundle=bundle,
        known=known,
        places=places,
        given=selection.given,
        picture=selection.picture,
        overwrite=request.overwrite,
        request=None if source is None else replace(request, out=places.out),
        warnings=(
            *(() if source is None else source.remarks),
            *selection.remarks,
            *told,
            *short,
            *faults,
            *left_out,
        ),
        seconds=time.perf_counter() - begun,
    )


def with_loras(bundle: Bundle, loras: tuple[Lora, ...]) -> tuple[Bundle, list[str]]:
    """The model with these LoRAs and no others, and what of them was left out.

    Raises:
        ModelError: a LoRA of another model; the model is then as it was.
    """
    files = digest(loras)  # a file may have changed under its name
    if files == bundle.lora_digest:
        return bundle, []
    told: list[str] = []
    if loras:
        told = apply_loras(bundle.transformer, loras)
    else:
        remove_loras(bundle.transformer)
    return replace(bundle, loras=loras, lora_digest=files), told


@torch.inference_mode()
def encode_given(selection: Selection, bundle: Bundle) -> tuple[tuple[Known, ...], list[str]]:
    """The latents of all that is given, and a warning for each picture that the codec can't hold.

    Past its first latent frame a causal codec wants frames before: the first one is held for them.
    """
    stride, made, faults = bundle.spec.temporal_stride, [], []
    for given in selection.given:
        pixels = torch.tensor(given.pixels)
        if stride > 1 and given.at and not given.clip:
            pixels = pixels.expand(stride, -1, -1, -1)
        held = 1 + HELD * stride if stride > 1 and given.at else 0
        pixels = torch.cat([pixels[:1].expand(held, -1, -1, -1), pixels])
        video = pixels.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = bundle.codec.encode(video)
        if not given.clip:
            shown = bundle.codec.decode(latents)[:, :, -1:].float().cpu()
            psnr = -10 * math.log10(max((shown - video[:, :, -1:]).square().mean().item() / 4, 1e-12))
            if psnr < LOW_PSNR:
                told = given.told.replace("start ", "") if len(selection.given) == 1 else given.told
                faults.append(
                    f"{told} comes out of the model's codec at {psnr:.1f} dB PSNR, below {LOW_PSNR:g}: "
                    "it will look simplified; pictures like those it was trained on come out sharper"
                )
        made.append(Known(given.at, latents[0, :, -given.latents :].float().cpu(), given.digest))
    return tuple(made), faults


def prompt_warnings(request: GenerateRequest, config: RunConfig, bundle: Bundle) -> list[str]:
    """What the prompts say in vain: unknown words, words of a slot that is taken, a prompt without a part."""
    told = bundle.conditioner.remarks((*config.script.prompts, config.negative_prompt))
    if request.negative_prompt and not config.negative_prompt:
        told.append(
            f"the negative prompt has no part at guidance {config.guidance:g}: raise --guidance above 1"
        )
    if bundle.conditioner.sees_picture and config.image is None:
        told.append(f"{bundle.spec.name} was trained to go on from a picture: add --image")
    return told
