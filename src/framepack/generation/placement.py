"""A loaded model fitted into the memory there is: where its weights lie, and in what they are stored.

Weights that are read from files stay mapped from them where they can: what lies in system memory is then the
system's own cache of the file, which it may drop, and nothing is held twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from framepack.errors import InputError, OutOfMemoryError, ran_out
from framepack.generation.request import GenerateRequest
from framepack.generation.selection import Selection
from framepack.generation.splitting import devices_for, split
from framepack.models.bundle import Bundle
from framepack.models.device import pick_dtype
from framepack.models.loading import load_bundle, move_companions
from framepack.models.source import Source
from framepack.resources.machine import GB, device_memory
from framepack.resources.policy import AUTO, FP8, FULL, LAYER, MODEL, POLICIES, SPLIT, Policy, find_policy

if TYPE_CHECKING:
    from framepack.resources.estimate import Estimate

BLOCK = 64
"""Weights of nf4 that share a scale."""


def policy_for(
    request: GenerateRequest, source: Source, selection: Selection, device: torch.device
) -> Policy:
    """The policy that a request names. ``auto`` is the one that changes least of those that fit.

    Of several GPUs that are asked for, all are used; where only one is, and nothing fits it without rounding
    weights, others that can be seen are.

    Raises:
        UnknownNameError: no such policy. InputError: one that there is no room for, named or ``auto``.
    """
    if request.memory != AUTO:
        policy = find_policy(request.memory)
        told = no_room(source, policy, device, pick_dtype(request.dtype, device), request.devices)
        if told is not None:
            fits = _fitting(request, selection, device)
            raise InputError(f"{told}: choose --memory {fits.name}, which fits")
        return policy
    if device.type == "cpu" and request.devices > 1:
        return POLICIES[FULL]  # processes that share its memory, for trying it out: not estimated
    return _fitting(request, selection, device)


def no_room(
    source: Source, policy: Policy, device: torch.device, dtype: torch.dtype, devices: int = 1
) -> str | None:
    """Why a GPU cannot hold a policy's weights; None where it can, as far as the transformer's alone tell.

    A CPU always can: what is mapped from files is read again, however slowly.

    Args:
        devices: as in `place`.
    """
    if device.type == "cpu" or policy.placement == LAYER:
        return None
    from framepack.resources.hollow import architecture_of
    from framepack.resources.weights import weigh

    held = weigh(architecture_of(source).hollow(dtype=dtype), policy.storage, dtype).total
    cards = devices_for(policy, device, devices) if policy.placement == SPLIT else [device]
    room = sum(map(device_memory, cards))
    if held <= room:
        return None
    return (
        f"the transformer of '{source.name}' takes {held / GB:.1f} GB by memory policy '{policy.name}', and "
        f"{' and '.join(map(str, cards))} {'has' if len(cards) == 1 else 'have'} {room / GB:.1f} GB"
    )


def _fitting(request: GenerateRequest, selection: Selection, device: torch.device) -> Policy:
    """Raises InputError: there is none."""
    found = _estimated(request, selection, device, request.devices)
    chosen = found.chosen
    several = device.type == "cuda" and device.index is None and request.devices == 1
    others = torch.cuda.device_count() if several else 1
    if others > 1 and (chosen is None or chosen.policy.storage is not None):
        spread = _estimated(request, selection, device, others).chosen
        if spread is not None and (chosen is None or spread.policy.storage is None):
            chosen = spread
    if chosen is not None:
        return chosen.policy
    least = min(found.choices, key=lambda choice: (not choice.fits, choice.device))
    height, width = selection.size
    needs, here = f"{least.device / GB:.1f} GB", f"{found.memory / GB:.1f} GB"
    if device.type == "cuda":
        needs += f" of the GPU and {least.system / GB:.1f} GB of the system"
        here += f" and {found.system / GB:.1f} GB"
    raise InputError(
        f"{found.model} at {width}x{height} needs {needs} with --memory {least.policy.name}, the least there "
        f"is; here are {here}: choose a smaller --size or --schedule"
        + (", or --memory full to try it all the same" if device.type == "cpu" else "")
    )


def _estimated(
    request: GenerateRequest, selection: Selection, device: torch.device, devices: int
) -> Estimate:
    """What is asked for on so many GPUs of this machine, each taken for the smallest of them, or without."""
    from framepack.resources.estimate import estimate  # brings what counts without data, where it is asked

    cards = [device] if devices == 1 else [torch.device("cuda", index) for index in range(devices)]
    timeline = selection.timeline
    return estimate(
        request.model,
        size=selection.size,
        seconds=timeline.frames / timeline.fps,
        method=request.method,
        schedule=request.schedule,
        steps=request.steps,
        guidance=request.guidance,
        device=device.type,
        devices=devices,
        dtype=request.dtype,
        memory=min(map(device_memory, cards)) / GB,
    )


def load_placed(
    source: Source, policy: Policy, device: torch.device, dtype: torch.dtype, devices: int = 1
) -> Bundle:
    """Read a model and put its weights where a policy has them; from mapped files they go straight there.

    Args:
        devices: as in `place`.

    Raises:
        ModelError: see `load_bundle`. InputError: see `place`. OutOfMemoryError: it did not fit.
    """
    if policy.placement == SPLIT:
        devices_for(policy, device, devices)  # refused before anything is read
    try:
        if policy.name == FULL:
            return load_bundle(source, device, dtype)
        read = load_bundle(source, "cpu", dtype, computes=device.type == "cpu")
        return place(read, policy, device, devices)
    except Exception as error:
        if not ran_out(error):
            raise
    # Not in the handler, whose error holds all that was being loaded.
    raise OutOfMemoryError(
        f"memory ran out while '{source.name}' was loaded on {device} by memory policy '{policy.name}': "
        "framepack estimate tells what fits"
    )


def place(bundle: Bundle, policy: Policy, device: torch.device, devices: int = 1) -> Bundle:
    """Put a model whose weights are on the CPU where a policy has them, to compute on ``device``.

    On a CPU all weights are in system memory anyway: only storage and tiles make a difference.

    Args:
        devices: how many a policy that splits has, see `splitting.devices_for`.

    Raises:
        InputError: a policy that the device or the model cannot have.
    """
    if policy.placement in (LAYER, MODEL) and device.type == "mps":
        raise InputError(
            f"memory policy '{policy.name}' keeps weights in system memory, which an MPS device shares: "
            "choose one without models or layers"
        )
    if policy.storage is not None:
        bundle = stored(bundle, policy.storage)
    if policy.tiled:
        tile(bundle)
    if policy.placement == SPLIT:
        stream_encoders(bundle, policy.streams_encoders)
        return split(bundle, devices_for(policy, device, devices))
    if device.type == "cpu":
        return bundle
    if policy.placement == LAYER:
        return layer_by_layer(bundle, device)
    if policy.placement == MODEL:
        return in_turns(bundle, device)
    bundle.transformer.to(device)
    move_companions(bundle, device)
    stream_encoders(bundle, policy.streams_encoders)
    return bundle


def tile(bundle: Bundle) -> None:
    """Have the codec work in overlapping tiles, if it has any: one of single frames needs none."""
    if hasattr(bundle.codec, "enable_tiling"):
        bundle.codec.enable_tiling()


def stream_encoders(bundle: Bundle, wanted: bool) -> None:
    """Have text and image encoders brought to the device layer by layer."""
    if hasattr(bundle.conditioner, "streamed"):
        bundle.conditioner.streamed = wanted


# Stored smaller ------------------------------------------------------------------------------------------


def stored(bundle: Bundle, storage: str) -> Bundle:
    """The model with its transformer's weights rounded for storage; its digest is another one.

    Args:
        storage: "fp8" (E4M3), or "nf4" (Dettmers and others 2023, "QLoRA").

    Raises:
        InputError: nf4 without bitsandbytes.
    """
    transformer, dtype, kind = bundle.transformer, bundle.transformer.dtype, storage
    if storage == FP8:
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
        kind = str(torch.float8_e4m3fn)  # by which digests, and so runs, have known it
    else:
        _to_nf4(transformer, dtype)
    digest = hashlib.sha256(f"{bundle.digest} stored in {kind}".encode()).hexdigest()
    return replace(bundle, digest=digest)


def _to_nf4(transformer: Any, dtype: torch.dtype) -> None:
    """Put 4-bit layers in the place of those that layerwise casting would cast."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise InputError(
            "nf4 needs bitsandbytes, which is not installed: pip install bitsandbytes, or choose fp8"
        ) from None
    kept = transformer._skip_layerwise_casting_patterns or ()
    for path, parent in list(transformer.named_modules()):
        for name, layer in list(parent.named_children()):
            whole = f"{path}.{name}".lstrip(".")
            if type(layer) is not nn.Linear or any(pattern in whole for pattern in kept):
                continue
            made = Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=dtype,
                quant_type="nf4",
                device="meta",
            )
            made.weight = Params4bit(
                layer.weight.data,
                requires_grad=False,
                quant_type="nf4",
                blocksize=BLOCK,
                compress_statistics=False,  # its scales are float32, as an estimate counts them
                module=made,
            )
            made.bias = layer.bias
            setattr(parent, name, made.to("cpu").requires_grad_(False))


# Elsewhere until they are needed -------------------------------------------------------------------------


def layer_by_layer(bundle: Bundle, device: torch.device) -> Bundle:
    """Leave the transformer's weights in system memory and bring each layer over when its turn comes.

    With CUDA the next layer is brought while one computes.
    """
    bundle.transformer.to("cpu")
    use_stream = device.type == "cuda"
    bundle.transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=use_stream,
        # Pinned as they go: pinned at once, all weights would be held a second time.
        low_cpu_mem_usage=use_stream,
    )
    move_companions(bundle, device)
    stream_encoders(bundle, True)
    return replace(bundle, execution=device)


def in_turns(bundle: Bundle, device: torch.device) -> Bundle:
    """Leave weights in system memory; transformer and codec are on the device one at a time."""
    bundle.transformer.to("cpu")
    turns = Turns(device)
    turns.add(bundle.transformer, [bundle.transformer])
    move_companions(bundle, device)
    codec: Any = bundle.codec
    if hasattr(codec, "vae"):  # that of framepack's own is small, and stays
        vae = codec.vae.to("cpu")
        # Its parts are called by themselves, by diffusers' tiles and by ours.
        turns.add(vae, list(vae.children()))
        codec.execution = device
    stream_encoders(bundle, True)
    return replace(bundle, execution=device)


class Turns:
    """Modules that are on a device one at a time: from a call of theirs until another one's.

    Copies of the weights visit the device; where they were read, they stay, and nothing is copied back.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.present: nn.Module | None = None
        self._homes: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, module: nn.Module, called: Sequence[nn.Module]) -> None:
        """Let a module take part, which is entered by calls of these modules."""

        def enter(part: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            self.bring(module)
            return tree_map(self._here, (args, kwargs))

        for part in called:
            part.register_forward_pre_hook(enter, with_kwargs=True)

    def bring(self, module: nn.Module) -> None:
        """Have a module on the device, and no other."""
        if self.present is module:
            return
        self.leave()
        self.present = module
        for tensor in _tensors(module):
            self._homes.append((tensor, tensor.data))
            tensor.data = tensor.data.to(self.device, copy=True)
            _move_scales(tensor, self.device)

    def leave(self) -> None:
        """Have none on the device."""
        for tensor, home in self._homes:
            tensor.data = home
            _move_scales(tensor, home.device)
        self._homes.clear()
        self.present = None

    def _here(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, torch.Tensor) else value


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _move_scales(tensor: torch.Tensor, device: torch.device) -> None:
    """Of a weight in 4 bits."""
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        state.to(device)
