"""From a request to a run that has passed every check."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from framepack.generation.config import RunConfig, resolve
from framepack.generation.places import Places
from framepack.generation.request import GenerateRequest, Selection, select
from framepack.generation.run import PreparedRun
from framepack.models.bundle import Bundle
from framepack.models.codebook import check_codebook
from framepack.models.device import pick_device, pick_dtype
from framepack.models.loading import load_bundle
from framepack.models.lora import Lora, apply_loras, digest, remove_loras
from framepack.models.source import CODEBOOK, resolve_model
from framepack.sampling.solvers import check_solver

LOW_PSNR = 25.0
"""dB below which a picture has visibly lost something in the codec."""


def prepare(request: GenerateRequest, bundle: Bundle | None = None) -> PreparedRun:
    """Check a request and load what it needs; nothing is written.

    What can be refused without weights is refused before they are loaded.

    Args:
        bundle: a loaded model, in place of ``request.model``, ``parts``, ``device`` and ``dtype``.

    Raises:
        InputError, ModelError, OutputError: see ``select``, ``load_bundle`` and ``Places.check``.
    """
    begun = time.perf_counter()
    source = resolve_model(request.model, request.parts) if bundle is None else None
    spec = bundle.spec if source is None else source.spec  # type: ignore[union-attr]
    selection = select(request, spec)
    check_solver(request.solver or spec.solver, spec)
    if source is not None:
        # Of a model that is still on the hub the parts are unknown.
        held = source.repository is not None or CODEBOOK in source.parts
        check_codebook(selection.method, spec.name, present=held)
        device = pick_device(request.device)
        bundle = load_bundle(source, device, pick_dtype(request.dtype, device))
    assert bundle is not None
    check_codebook(selection.method, spec.name, present=bundle.codebook is not None)
    config = resolve(request, selection, bundle)
    places = Places.of(config.job, request.out, request.workdir)
    places.check(config, overwrite=request.overwrite)
    known, faults = encode_picture(selection, bundle)
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
        picture=selection.picture,
        overwrite=request.overwrite,
        warnings=(
            *(() if source is None else source.remarks),
            *told,
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
def encode_picture(selection: Selection, bundle: Bundle) -> tuple[dict[int, torch.Tensor], list[str]]:
    """The start image as the latent (C, h, w) of frame 0, and a warning where the codec can't hold it."""
    if selection.picture is None:
        return {}, []
    import numpy as np

    pixels = torch.from_numpy(np.asarray(selection.picture, dtype=np.float32) / 127.5 - 1)
    video = pixels.permute(2, 0, 1)[None, :, None]
    latents = bundle.codec.encode(video)
    error = (bundle.codec.decode(latents).float().cpu() - video).square().mean().item()
    psnr = 10 * np.log10(4 / max(error, 1e-12))
    faults = []
    if psnr < LOW_PSNR:
        faults.append(
            f"the picture comes out of the model's codec at {psnr:.1f} dB PSNR, below {LOW_PSNR:g}: "
            "it will look simplified; pictures like those it was trained on come out sharper"
        )
    return {0: latents[0, :, 0].float().cpu()}, faults


def prompt_warnings(request: GenerateRequest, config: RunConfig, bundle: Bundle) -> list[str]:
    """What the prompts say in vain: unknown words, words of a slot that is taken, a prompt without a part."""
    told = bundle.conditioner.remarks((config.prompt, config.negative_prompt))
    if request.negative_prompt and not config.negative_prompt:
        told.append(
            f"the negative prompt has no part at guidance {config.guidance:g}: raise --guidance above 1"
        )
    if bundle.conditioner.sees_picture and config.image is None:
        told.append(f"{bundle.spec.name} was trained to go on from a picture: add --image")
    return told
