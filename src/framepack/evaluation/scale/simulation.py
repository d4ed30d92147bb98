"""What video of any length takes with four kinds of context: tokens, operations, memory, time and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from framepack.errors import InputError
from framepack.evaluation.scale.measured import Measured, Measuring
from framepack.models.device import pick_device, pick_dtype
from framepack.planning.timeline import MAX_SECONDS, Timeline
from framepack.resources.hollow import find_architecture
from framepack.resources.kinds import Kind, Point, Simulated, Throughput
from framepack.resources.machine import GB, machine, machine_line
from framepack.resources.section_cost import Numbers, SectionCost
from framepack.resources.sections import (
    CACHE,
    FULL,
    KINDS,
    PACKED,
    WINDOW,
    count_of,
    frames_per_section,
    grid_of,
    timeline_of,
    unpacked_method,
    whole,
)

SHOWN = (10.0, 60.0, 600.0, 3600.0, MAX_SECONDS)
"""Seconds of video that the table tells of."""
HISTORIES = (1, 4, 8, 16, 32)
"""Sections before the ones that are carried out."""
CALIBRATING = (1, 8)
"""Of them those whose sections, packed and with full history, give the throughput; all others are a check."""
LENGTHS, FEW = 48, 12
"""Of a curve: so many spread evenly over all, and all below so many sections, where context still fills."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One kind of context: videos of whole sections, and those of the table."""

    kind: str
    points: tuple[Point, ...]
    table: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A section that was carried out, and what was simulated for it; ``calibrates``: its time was told."""

    measured: Measured
    operations: float
    memory: float
    time: float
    calibrates: bool


@dataclass(frozen=True, kw_only=True)
class Scale:
    """All of it.

    model, size (height, width), fps, method: what was simulated. section_seconds: of video that a section
    makes. memory: bytes that there are. price: of an hour, or None. assumptions: a line each.
    """

    model: str
    size: tuple[int, int]
    fps: float
    method: str
    section_seconds: float
    memory: float
    price: float | None
    curves: tuple[Curve, ...]
    checks: tuple[Check, ...]
    assumptions: tuple[str, ...]

    def fits(self, point: Point) -> bool:
        return point.memory <= self.memory

    def cost(self, seconds: float) -> float | None:
        return None if self.price is None else self.price * seconds / 3600


def simulate(
    model: str = "bundled",
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    method: str | None = None,
    schedule: str | None = None,
    window: int | None = None,
    seconds: float = MAX_SECONDS,
    steps: int | None = None,
    guidance: float | None = None,
    flops_per_second: float | None = None,
    price: float | None = None,
    memory: float = 80.0,
    histories: Sequence[int] = HISTORIES,
    limit: float = 4.0,
    device: str = "auto",
    dtype: str = "auto",
    tell: Callable[[str], None] = lambda line: None,
) -> Scale:
    """Work out what videos of up to ``seconds`` take.

    Args:
        model: as in `find_architecture`. size: (height, width) in px; the model's first bucket.
        fps, method, schedule, steps, guidance: the model's own by default.
        window: latent frames of the sliding window; as many tokens as packed by default.
        flops_per_second: of another device, which keeps branches of guidance apart and computes in bfloat16;
            None has sections carried out here, for which the model's weights must be here.
        price: of an hour of the device. memory: GB that it has.
        histories: sections before each that is carried out. limit: seconds to time one for.
        device, dtype: where and in what they are carried out. tell: told of progress.

    Raises:
        UnknownNameError, ModelError: a model that cannot be found or read.
        InputError: values that make no sense, or no throughput to be had.
    """
    architecture = find_architecture(model)
    spec = architecture.spec
    own = spec.method(method, schedule, untrained=True)
    grid = grid_of(spec, size)
    numbers = {"fps": fps, "--flops-per-second": flops_per_second, "--window": window, "steps": steps}
    for name, value in {**numbers, "--memory": memory, "limit": limit}.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} {value:g} must be above 0")
    if price is not None and not (np.isfinite(price) and price >= 0):
        raise InputError(f"--price {price:g} must be 0 or more")
    if min(histories, default=0) < 0:
        raise InputError(f"{min(histories)} sections of history: give 0 or more")
    fps = fps or spec.fps
    longest = timeline_of(spec, own, seconds, fps)
    if seconds * fps < frames_per_section(longest, own.section_size) + 1:
        raise InputError(f"{seconds:g} s are no section of {own.section_size} latent frames: ask for more")
    here = flops_per_second is None
    if here and (architecture.source is None or architecture.source.repository is not None):
        raise InputError(
            f"the weights of '{model}' are not here, so its speed cannot be measured: add --flops-per-second "
            "of a device, such as 4e14"
        )
    where = pick_device(device) if here else torch.device("cuda")
    guidance = spec.guidance if guidance is None else guidance
    simulated = Simulated.of(
        architecture,
        own,
        grid,
        steps=steps or spec.steps,
        guidance=guidance,
        dtype=pick_dtype(dtype, where) if here else torch.bfloat16,
        device=where,
        window=window,
    )
    joint, cached = simulated.cost(), simulated.cost(isolated=True)
    kinds = {kind: Kind(kind, simulated, cached if kind == CACHE else joint) for kind in KINDS}
    carried: list[Measured] = []
    if here:
        carried = _carried_out(
            simulated, whole(longest, own.section_size, 1), guidance, histories, limit, tell
        )
        throughput = _calibrated(kinds, carried)
    else:
        throughput = Throughput(float(flops_per_second or 0), float(flops_per_second or 0))
    checks = tuple(_check(kinds[m.kind], m, throughput) for m in carried)
    curves = tuple(_curve(kinds[kind], longest, throughput, tell) for kind in KINDS)
    return Scale(
        model=spec.name,
        size=(grid[0] * spec.spatial_stride, grid[1] * spec.spatial_stride),
        fps=fps,
        method=str(own),
        section_seconds=frames_per_section(longest, own.section_size) / fps,
        memory=memory * GB,
        price=price,
        curves=curves,
        checks=checks,
        assumptions=tuple(_assumptions(simulated, joint, throughput, carried, guidance)),
    )


def _carried_out(
    model: Simulated,
    timeline: Timeline,
    guidance: float,
    histories: Sequence[int],
    limit: float,
    tell: Callable[[str], None],
) -> list[Measured]:
    base, own = model.spec.base_kernel, model.method
    longest = len(timeline.known) + max(histories, default=0) * own.section_size
    methods = {
        PACKED: own,
        FULL: unpacked_method(own, base, longest),
        WINDOW: unpacked_method(own, base, model.window),
    }
    measuring = Measuring(
        model.architecture,
        model.grid,
        device=model.device,
        dtype=model.dtype,
        steps=model.steps,
        guidance=guidance,
        limit=limit,
    )
    return measuring.measure(methods, timeline, histories, tell)


def _calibrates(measured: Measured) -> bool:
    """Few tokens and many, so that attention can be told from all the rest."""
    return measured.kind in (PACKED, FULL) and measured.history in CALIBRATING


def _calibrated(kinds: Mapping[str, Kind], carried: Sequence[Measured]) -> Throughput:
    """From sections that were carried out; each counts by its share that is missed, not by its seconds.

    Raises:
        InputError: none of them were.
    """
    chosen = [measured for measured in carried if _calibrates(measured)]
    if not chosen:
        told = " and ".join(map(str, CALIBRATING))
        raise InputError(f"the speed is measured after {told} sections of history: have these among them")
    work = np.array([[float(part[0]) for part in _work(kinds, measured)] for measured in chosen])
    seconds = np.array([measured.seconds for measured in chosen])
    inverse = np.linalg.lstsq(work / seconds[:, None], np.ones(len(chosen)), rcond=None)[0]
    if len({m.history for m in chosen}) < 2 or (inverse <= 0).any():  # nothing tells the two apart
        one = float(np.median(work.sum(axis=1) / seconds))
        return Throughput(one, one)
    return Throughput(rest=float(1 / inverse[0]), attention=float(1 / inverse[1]))


def _work(kinds: Mapping[str, Kind], measured: Measured) -> tuple[Numbers, Numbers]:
    kind = kinds[measured.kind]
    return kind.work(kind.one(measured.shape))


def _check(kind: Kind, measured: Measured, throughput: Throughput) -> Check:
    section = kind.one(measured.shape)
    rest, attention = kind.work(section)
    return Check(
        measured=measured,
        operations=float(rest[0] + attention[0]),
        memory=kind.memory(section),
        time=float(throughput.seconds(rest, attention)[0]),
        calibrates=_calibrates(measured),
    )


def _curve(kind: Kind, longest: Timeline, throughput: Throughput, tell: Callable[[str], None]) -> Curve:
    """Videos of whole sections, and of the lengths that the table tells of."""
    size = kind.model.method.section_size
    most = count_of(longest, size)
    spread = np.geomspace(1, most, LENGTHS).round()
    counts = np.unique(np.concatenate([np.arange(1, FEW), spread])).astype(int)
    videos = [whole(longest, size, int(n)) for n in counts if n < most]
    told = [_cut(longest, seconds) for seconds in SHOWN if seconds * longest.fps <= longest.frames]
    curve = Curve(
        kind=kind.kind,
        points=tuple(kind.point(video, throughput) for video in (*videos, longest)),
        table=tuple(kind.point(video, throughput) for video in told),
    )
    tell(f"{kind.kind}: {most:,} sections simulated")
    return curve


def _cut(timeline: Timeline, seconds: float) -> Timeline:
    return replace(timeline, frames=round(seconds * timeline.fps))


def _assumptions(
    model: Simulated,
    cost: SectionCost,
    throughput: Throughput,
    carried: Sequence[Measured],
    scale: float,
) -> list[str]:
    """What the numbers hang on, a line each."""
    spec, precision = model.spec, str(model.dtype).removeprefix("torch.")
    lines = [
        f"{model.steps} steps a section, guidance {scale:g}: {model.branches} "
        + ("call" if model.branches == 1 else "calls")
        + f" of the transformer a step{', in one batch' if model.batch > 1 else ''}; from a start picture on",
        "operations: matrix products, convolutions and attention, counted on the model's own code without "
        "data; encoders and the decoder are left out",
        f"memory: weights of {cost.weights / GB:.3g} GB in {precision}, the most activations at once, "
        "keys and values that are kept; codec and encoders are taken to be elsewhere",
        f"causal cache: as CausVid's, in order of time; {model.steps} steps and one call more, for the keys "
        "and values of the finished frames; nothing is moved out of the device's memory",
        f"sliding window: the last {model.window} latent frames at the base kernel",
        "prompts of as many tokens as the encoders give at most",
    ]
    if cost.attention_varies:
        lines.append("memory has a hump: on this CPU, attention keeps its probabilities up to 2,048 tokens")
    if spec.pyramid is not None:
        lines.append("every step at full size: the lower stages of its pyramid take less")
    if not carried:
        lines.append(f"time: {throughput.rest:.3g} FLOP/s throughout, as given; nothing was measured")
        return lines
    where = machine_line(machine(str(model.device)))
    if throughput.rest == throughput.attention:
        told = f"{throughput.rest:.3g} FLOP/s"
    else:
        told = f"{throughput.attention:.3g} FLOP/s in attention, {throughput.rest:.3g} in all the rest"
    few = min(m.steps_timed for m in carried)
    after = " and ".join(sorted({str(m.history) for m in carried if _calibrates(m)}))
    lines.append(
        f"time: {told}, from measured sections, packed and with full history, after {after} sections; the "
        "other measured ones are a check"
    )
    if few < model.steps:
        lines.append(f"of the dearest sections {few} of {model.steps} steps were timed")
    lines.append(f"measured on {where}")
    return lines
