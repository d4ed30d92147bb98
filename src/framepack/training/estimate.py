"""What training needs, before anything is loaded: bytes and operations of a step, and the largest batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from framepack.errors import InputError
from framepack.models.device import pick_device
from framepack.packing.schedule import Grid
from framepack.planning.method import Method
from framepack.planning.timeline import Timeline
from framepack.resources.codec_cost import CodecCost
from framepack.resources.fitting import RESERVE
from framepack.resources.hollow import Architecture
from framepack.resources.machine import GB, device_memory
from framepack.resources.section_cost import Seen, Shape
from framepack.resources.sections import packed_sections, timeline_of, unpacked_sections
from framepack.sampling.shown import context_timestep
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.hollow import pretended
from framepack.training.step_cost import StepCost

PACKED, FULL = "packed", "full history"
SECTIONS = (1, 3, 5, 9)
"""Latent frames of the sections that are told of by default."""


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """Steps on one kind of sample.

    Attributes:
        section: latent frames that a sample makes. frames: that it sees. tokens: its own and its context's.
        batch: samples of a draw on each device; the largest that fits, 0 where one does not, or as given.
        most: bytes of a device at once, with one sample where none fits. part: of the step, that takes them.
        a_sample: bytes that a second one adds there. operations: of a sample. seconds: of a step, if timed.
        fits: so many samples are within the memory.
    """

    history: str
    section: int
    frames: int
    tokens: tuple[int, int]
    batch: int
    most: int
    part: str
    a_sample: int
    operations: float
    seconds: float | None
    fits: bool


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """All of it.

    Attributes:
        parameters, trained: counts. size: (height, width). devices: that share the model.
        memory: bytes that each has. held: bytes of a device, by what they are, whatever the sample.
        system: bytes of system memory while the model is loaded. assumptions: a line each.
    """

    model: str
    method: str
    training: str
    parameters: int
    trained: int
    size: tuple[int, int]
    clip: float
    device: str
    devices: int
    memory: float
    held: dict[str, int]
    system: int
    rows: tuple[TrainingRow, ...]
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate_training(
    architecture: Architecture,
    config: FineTuneConfig,
    method: Method,
    grid: Grid,
    *,
    seconds: float = 5.0,
    sections: Sequence[int] = SECTIONS,
    devices: int = 1,
    batch: int | None = None,
    device: str = "auto",
    memory: float | None = None,
    flops_per_second: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> TrainingEstimate:
    """Work out what steps of training need, on the last section of clips.

    Args:
        config: how it is trained; its ``batch`` and ``micro`` decide nothing here.
        method: whose context is packed; its section size is changed to each of ``sections``.
        grid: of the latents. seconds: of a clip.
        devices: GPUs that share the model. batch: samples of a draw on each; None seeks the largest.
        device: ``auto`` is this machine's, or GPUs where ``memory``, ``flops_per_second`` or several
            ``devices`` are given.
        memory: GB of each device; this machine's by default. flops_per_second: of each.
        tell: told of progress.

    Raises:
        InputError: values that make no sense, a device whose memory is unknown, or settings by which the
            model cannot be trained. ModelError: likewise.
    """
    for name, count in (("--devices", devices), ("--batch", batch), *(("--section", s) for s in sections)):
        if count is not None and count < 1:
            raise InputError(f"{name} {count}: give 1 or more")
    for name, value in {"--memory": memory, "--flops-per-second": flops_per_second}.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value:g} must be a number above 0")
    spec = architecture.spec
    elsewhere = device == "auto" and (memory or flops_per_second or devices > 1)
    where = torch.device("cuda") if elsewhere or device == "cuda" else pick_device(device)
    room = device_memory(where) if memory is None else memory * GB
    spare = RESERVE * GB if where.type == "cuda" else 0.0
    tell("codec")
    codec = CodecCost(architecture, grid, where).weights.total
    if config.isolated:
        method = replace(method, history_timestep="zero")
    timeline = timeline_of(spec, method, seconds, spec.fps)
    shapes = [
        found
        for size in sections
        for found in shapes_of(replace(method, section_size=size), timeline, grid, spec).items()
    ]
    with pretended(devices) as processes:
        tell("weights and optimiser")
        cost = StepCost(
            architecture,
            grid,
            config,
            kernels=method.schedule.kernels,
            timestep=context_timestep(method),
            device=where,
            processes=processes,
        )
        rows = []
        for history, shape in shapes:
            tell(f"section of {shape.target}, {history}")
            rows.append(_row(cost, history, shape, codec, room - spare, batch, flops_per_second))
        held = cost.count(shape, 1).held
    loaded = (devices + 1 if devices > 1 else 1) * cost.parameters * cost.dtype.itemsize
    adapter = config.lora
    stride = spec.spatial_stride
    return TrainingEstimate(
        model=spec.name,
        method=f"{method.order} {method}",
        training="all weights" if adapter is None else f"LoRA of rank {adapter.rank}",
        parameters=cost.parameters,
        trained=cost.trained,
        size=(grid[0] * stride, grid[1] * stride),
        clip=seconds,
        device=str(where),
        devices=devices,
        memory=room,
        held={name: size for name, size in (held | {"codec": codec}).items() if size},
        system=loaded,
        rows=tuple(rows),
        assumptions=tuple(_assumptions(config, devices, where, held, flops_per_second)),
    )


def shapes_of(method: Method, timeline: Timeline, grid: Grid, spec: Any) -> dict[str, Shape]:
    """A whole section at the end of a clip, by the history that it sees.

    Raises:
        InputError: a clip that is shorter than a section and a start frame.
    """
    if timeline.latent_frames <= method.section_size:
        raise InputError(
            f"clips of {timeline.seconds:g} s have {timeline.latent_frames} latents, a section of "
            f"{method.section_size} and its start frame have more: raise --seconds"
        )
    packed = packed_sections(timeline, method, grid)
    full = unpacked_sections(timeline, method, grid, spec.base_kernel)
    frames = int(full.frames.max())
    return {
        PACKED: replace(packed.shapes[packed.dearest], target=method.section_size),
        FULL: Shape(method.section_size, (Seen(spec.base_kernel, frames),)),
    }


def _row(
    cost: StepCost,
    history: str,
    shape: Shape,
    codec: int,
    room: float,
    batch: int | None,
    flops: float | None,
) -> TrainingRow:
    def peak(samples: int) -> int:
        return codec + cost.count(shape, samples).most

    most = batch or cost.largest(shape, room - codec)
    samples = max(most, 1)
    count = cost.count(shape, samples)
    one, two = (cost.count(shape, n).peaks for n in (1, 2))
    operations = count.operations / samples
    return TrainingRow(
        history=history,
        section=shape.target,
        frames=sum(level.frames for level in shape.seen),
        tokens=(
            shape.target_tokens(cost.grid, cost.architecture.spec.base_kernel),
            shape.context_tokens(cost.grid),
        ),
        batch=most,
        most=peak(samples),
        part=count.dearest,
        a_sample=two[count.dearest] - one[count.dearest],
        operations=operations,
        seconds=None if flops is None else samples * operations / flops,
        fits=peak(samples) <= room,
    )


def _assumptions(
    config: FineTuneConfig, devices: int, device: torch.device, held: dict[str, int], flops: float | None
) -> list[str]:
    lines = [
        "counted on the training's own step with tensors without data; buffers inside kernels and of "
        "collectives, and what an allocator wastes, are not in it",
        "a sample: the last section of a clip, prompts of all tokens; latents and prompts come from the "
        "cache, encoders are not loaded; the codec is there for videos on the way, their decoding is not",
        "a step is one draw on each device; of several draws all but the first find the gradients there: "
        f"{held['gradients'] / GB:.3g} GB more at most",
        "activations are computed again for the gradient, block by block"
        if config.checkpointing
        else "activations are kept for the gradient: no checkpointing",
    ]
    if devices > 1:
        lines.append(
            f"{devices} devices have a part of all weights, gradients and moments each, and gather block by "
            "block"
        )
        if config.objective.rollout.share:
            lines.append("while a history is made, each device holds all weights: not in it")
    if device.type == "cuda":
        lines.append(f"{RESERVE:g} GB of the GPU are left to CUDA itself")
    if flops is None:
        lines.append("no times without --flops-per-second, the GPU's speed")
    else:
        lines.append(f"time: at {flops:g} FLOP/s throughout, as given, and nothing for what devices exchange")
    return lines
