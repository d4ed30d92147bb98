"""What a video needs, before anything is loaded: bytes and operations of each stage, and policies that fit.

A run loads the transformer and the codec, has the encoders read the prompts, then makes section after section
and decodes what is certain. What each of these takes is counted on tensors without data; where the weights
lie meanwhile is a policy's affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from framepack.errors import InputError
from framepack.models.device import pick_device, pick_dtype
from framepack.resources.codec_cost import CodecCost
from framepack.resources.companions import Companion, encoders
from framepack.resources.fitting import RESERVE, Choice, Work, fitted
from framepack.resources.hollow import Architecture, find_architecture
from framepack.resources.kinds import Kind, Simulated, Throughput
from framepack.resources.machine import GB, device_memory, system_memory
from framepack.resources.policy import DEVICE, NF4, POLICIES, SPLIT, Policy
from framepack.resources.sections import PACKED, grid_of, timeline_of
from framepack.resources.weights import Weights, weigh

NOMINAL = 1e14
"""FLOP a second by which policies are put in order where no throughput is given."""
BANDWIDTH = 12.0
"""GB a second from system memory to a GPU: PCIe 3.0 with 16 lanes, or 4.0 with 8."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
WIDEST = 4
"""Sides of a video, in the longest one of the model's sizes: the limit of what is made at all."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part at work.

    Attributes:
        name: of the part. what: its class, and where its configuration is from.
        weights, activations: bytes; the latter most at once. operations: of the whole video.
    """

    name: str
    what: str
    weights: int
    activations: int
    operations: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """All of it.

    Attributes:
        size: (height, width). tokens: of the dearest section, its own and its context's. calls: of the
            transformer, of all sections. section_operations: of the dearest section, all its steps.
        devices: how many make a section together.
        memory, system: bytes that there are, of each device and of the system. timed: the throughput was
            given.
        choices: those that fit first, the fastest first. assumptions: a line each.
    """

    model: str
    method: str
    size: tuple[int, int]
    fps: float
    frames: int
    sections: int
    latents: int
    steps: int
    calls: int
    tokens: tuple[int, int]
    section_operations: float
    device: str
    devices: int
    dtype: str
    memory: float
    system: float
    timed: bool
    stages: tuple[Stage, ...]
    choices: tuple[Choice, ...]
    assumptions: tuple[str, ...]

    @property
    def chosen(self) -> Choice | None:
        """What ``auto`` takes: of what fits, the one that changes least of the result, then the fastest."""
        fitting = [choice for choice in self.choices if choice.fits and choice.fits_system]
        return min(fitting, key=lambda choice: choice.policy.loss, default=None)

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        chosen = self.chosen
        for entry, choice in zip(told["choices"], self.choices, strict=True):
            entry["policy"] = choice.policy.name
            entry["changes"] = choice.policy.changes
            if not self.timed:
                entry["seconds"] = None
        return told | {"chosen": None if chosen is None else chosen.policy.name}


def estimate(
    model: str = "bundled",
    *,
    size: tuple[int, int] | None = None,
    seconds: float = 5.0,
    method: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    device: str = "auto",
    devices: int = 1,
    dtype: str = "auto",
    memory: float | None = None,
    system: float | None = None,
    flops_per_second: float | None = None,
    bandwidth: float = BANDWIDTH,
    tell: Callable[[str], None] = lambda line: None,
) -> Estimate:
    """Work out what a video from a start picture and one prompt needs.

    Args:
        model: as in `find_architecture`. size: (height, width) in px; the model's first bucket.
        method, schedule, steps, guidance: the model's own by default.
        device: ``auto`` is this machine's, or a GPU where ``memory`` or ``flops_per_second`` is given.
        devices: that make a section together, GPUs where there are several.
        dtype: that the transformer computes in; ``auto`` is bfloat16 on a GPU that is not here.
        memory, system: GB of each device and of the system; this machine's by default.
        flops_per_second: of the device; None gives no times. bandwidth: GB a second, from system to device.
        tell: told of progress.

    Raises:
        UnknownNameError, ModelError: a model, or a configuration of its parts, that cannot be found or read.
        InputError: values that make no sense, and a device whose memory is unknown.
    """
    _check(
        {
            "--memory": memory,
            "--system-memory": system,
            "--flops-per-second": flops_per_second,
            "--bandwidth": bandwidth,
            "--steps": steps,
            "--devices": devices,
        }
    )
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
        raise InputError(f"--guidance {guidance:g} must be 0 or more")
    architecture = find_architecture(model)
    spec = architecture.spec
    own = spec.method(method, schedule, untrained=True)
    grid = grid_of(spec, size)
    stride, most = spec.spatial_stride, WIDEST * max(map(max, spec.buckets))
    if max(grid) * stride > most:
        raise InputError(f"size {grid[1] * stride}x{grid[0] * stride}: sides must be {most} px at most")
    timeline = timeline_of(spec, own, seconds, spec.fps)
    elsewhere = device == "auto" and (memory is not None or flops_per_second is not None)
    where = torch.device("cuda") if elsewhere or device == "cuda" else pick_device(device)
    if devices > 1 and where.type != "cuda":
        raise InputError(f"{devices} devices are for GPUs, '{where}' is one: leave --devices out")
    if memory is None:
        memory = device_memory(where) / GB
    system = system_memory() / GB if system is None else system
    guidance = spec.guidance if guidance is None else guidance
    tell("transformer")
    simulated = Simulated.of(
        architecture,
        own,
        grid,
        steps=steps or spec.steps,
        guidance=guidance,
        dtype=_dtype(dtype, where),
        device=where,
    )
    cost = simulated.cost()
    kind = Kind(PACKED, simulated, cost)
    sections = simulated.sections(PACKED, timeline)
    point = kind.point(timeline, Throughput(1.0, 1.0))
    tell("encoders")
    readers = encoders(architecture, where, prompts=1 + (guidance != 1.0))
    codec = CodecCost(architecture, grid, where)
    decoded: list[tuple[Companion, Companion]] = []
    for tiled in (False, True)[: 1 + codec.has_tiles]:
        tell("codec, tiled" if tiled else "codec")
        decoded.append((codec.encode(tiled=tiled), codec.decode(timeline.latent_frames, tiled=tiled)))
    policies = _of(where, devices, architecture)
    work = Work(
        simulated=simulated,
        weights={
            storage: _weights(architecture, simulated, storage)
            for storage in {None, *(policy.storage for policy in policies)}
        },
        activations=int(point.memory) - cost.weights,
        operations=point.total_operations,
        sections=sections.count,
        calls=round(sections.count * simulated.steps * simulated.branches / simulated.batch),
        encoders=readers,
        codec=tuple(decoded),
        overlaps=own.order != "inverted" and sections.count > 1,
    )
    room = (memory * GB, system * GB)
    choices = [
        fitted(policy, work, room, flops_per_second or NOMINAL, bandwidth * GB, devices)
        for policy in policies
        if codec.has_tiles or not policy.tiled
    ]
    at = sections.dearest
    return Estimate(
        model=spec.name,
        method=f"{own.order} {own}",
        size=(grid[0] * stride, grid[1] * stride),
        fps=spec.fps,
        frames=timeline.frames,
        sections=sections.count,
        latents=timeline.latent_frames,
        steps=simulated.steps,
        calls=work.calls,
        tokens=(
            int(sections.target[at]) * cost.plain(1, 0).target_tokens(grid, spec.base_kernel),
            point.context,
        ),
        section_operations=point.operations,
        device=str(where),
        devices=devices,
        dtype=str(simulated.dtype).removeprefix("torch."),
        memory=room[0],
        system=room[1],
        timed=flops_per_second is not None,
        stages=tuple(_stages(work)),
        choices=tuple(sorted(choices, key=lambda c: (not (c.fits and c.fits_system), c.seconds))),
        assumptions=tuple(_assumptions(work, flops_per_second, bandwidth, devices)),
    )


def _check(numbers: dict[str, float | None]) -> None:
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value:g} must be a number above 0")


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted not in DTYPES:
        raise InputError(f"dtype '{wanted}': choose one of {', '.join(DTYPES)}; fp8 and nf4 are policies")
    if device.type == "cuda" and wanted == "auto":
        return torch.bfloat16
    return pick_dtype(wanted, device)


def _of(device: torch.device, devices: int, architecture: Architecture) -> list[Policy]:
    """Policies for a device: one that shares the system's memory has nothing to move its weights to.

    Several make a section together where each has all weights, and as many heads, or some of the blocks.
    """
    if devices > 1:
        evenly = architecture.heads % devices == 0
        several = (policy for policy in POLICIES.values() if policy.for_many)
        return [policy for policy in several if policy.placement == SPLIT or evenly]
    if device.type == "cuda":
        return [policy for policy in POLICIES.values() if policy.placement != SPLIT]
    lacks = () if device.type == "cpu" else (NF4,)
    return [p for p in POLICIES.values() if p.placement == DEVICE and p.storage not in lacks]


def _weights(architecture: Architecture, simulated: Simulated, storage: str | None) -> Weights:
    kernels = (simulated.spec.base_kernel, *simulated.method.schedule.kernels)
    return weigh(architecture.hollow(kernels, simulated.dtype), storage, simulated.dtype)


def _stages(work: Work) -> list[Stage]:
    spec = work.simulated.spec
    rows = [_stage(encoder) for encoder in work.encoders]
    rows.append(
        Stage(
            name="transformer",
            what=f"{spec.family}, a section",
            weights=work.weights[None].total,
            activations=work.activations,
            operations=work.operations,
        )
    )
    return rows + [_stage(step) for steps in work.codec for step in steps]


def _stage(part: Companion) -> Stage:
    return Stage(
        name=part.name,
        what=part.what,
        weights=part.weights.total,
        activations=part.activations,
        operations=part.operations,
    )


def _assumptions(work: Work, flops: float | None, bandwidth: float, devices: int) -> list[str]:
    simulated, shared = work.simulated, work.simulated.device.type != "cuda"
    branches, steps = simulated.branches, simulated.steps
    lines = [
        f"{steps} steps a section, {branches} {'call' if branches == 1 else 'calls'} of the transformer a "
        "step; from a start picture and one prompt",
        "counted on the models' own code with tensors without data; buffers inside kernels are not in it",
    ]
    guessed = [part.name for part in (*work.encoders, work.codec[0][0]) if part.published]
    if guessed:
        names = ", ".join("codec" if name == "encode" else name for name in guessed)
        lines.append(f"not here, so of the published configurations: {names}")
    if shared:
        lines.append("device and system are one memory: all parts are in it together")
        return lines
    lines += [
        f"{RESERVE:g} GB of {'the' if devices == 1 else 'each'} GPU are left to CUDA itself",
        f"{bandwidth:g} GB/s from system memory to the GPU; by models, transformer and codec change places "
        "in every section; by layers, the next one comes while one computes",
    ]
    if devices > 1:
        lines[-1] = (
            f"{bandwidth:g} GB/s from system memory to a GPU; what goes from GPU to GPU is not counted"
        )
        lines += [
            "full: each GPU has all weights and a part of the tokens, the first one the codec and encoders",
            "split: each GPU has some of the layers, and one computes at a time; encoders are on the first,"
            " the codec is on the last",
        ]
    if work.overlaps and devices == 1:
        lines.append(
            "with all weights on the GPU, a section is decoded while the next one is sampled where both fit"
        )
    if flops is None:
        lines.append(
            f"no times without --flops-per-second, the GPU's speed; in order as at {NOMINAL:g} FLOP/s"
        )
    else:
        lines.append(f"time: at {flops:g} FLOP/s throughout, as given; nothing was measured")
    if simulated.spec.pyramid is not None:
        lines.append("every step at full size: the lower stages of its pyramid take less")
    return lines
