"""What the stages of a run come to under each policy: where its bytes are at most, and what is moved."""

from __future__ import annotations

from dataclasses import dataclass

from framepack.resources.companions import Companion
from framepack.resources.division import divide
from framepack.resources.kinds import Simulated
from framepack.resources.machine import GB
from framepack.resources.policy import DEVICE, LAYER, MODEL, SPLIT, Policy
from framepack.resources.weights import Weights

RESERVE = 0.5
"""GB of a GPU that CUDA itself and its libraries take."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A policy and what it comes to.

    Attributes:
        device, system: most bytes at once on a device and in system memory.
        stage: in which the device holds most. devices: most bytes on each, where there are several.
        moved: bytes moved to the device in the whole video.
        seconds: of the whole video at the throughput given, or a nominal one.
        fits: in the device's memory. fits_system: in the system's.
    """

    policy: Policy
    device: int
    system: int
    stage: str
    moved: int
    seconds: float
    fits: bool
    fits_system: bool
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Work:
    """What has to be done, whatever the policy.

    Attributes:
        weights: of the transformer, by storage. activations: of its dearest section. operations: of all its
            calls.
        encoders: in the order that they work in.
        codec: a picture encoded and all decoded, whole and, where the codec has tiles, in these.
        overlaps: frames are certain before the last section, and decoded while the next ones are sampled.
    """

    simulated: Simulated
    weights: dict[str | None, Weights]
    activations: int
    operations: float
    sections: int
    calls: int
    encoders: tuple[Companion, ...]
    codec: tuple[tuple[Companion, Companion], ...]
    overlaps: bool


def fitted(
    policy: Policy,
    work: Work,
    room: tuple[float, float],
    flops: float,
    bandwidth: float,
    devices: int = 1,
) -> Choice:
    """What the work comes to under a policy.

    Args:
        room: bytes of each device and of the system. flops: operations a second of a device. bandwidth:
            bytes a second between it and the system. devices: that make a section together.
    """
    shared = work.simulated.device.type != "cuda"
    weights, plain = work.weights[policy.storage], work.weights[None]
    encode, decode = work.codec[int(policy.tiled)]
    codec, read = encode.weights.total, max((e.held for e in work.encoders), default=0)
    stages = _stages(policy, work, devices, shared=shared)
    spare = 0.0 if shared else RESERVE * GB
    if work.overlaps and not shared and policy.placement == DEVICE and devices == 1:
        both = stages[0]["transformer"] + decode.activations
        # Where both do not fit, a run finds out and has them take turns.
        if both + spare <= room[0]:
            stages[0][f"transformer, {decode.name}"] = both
    peaks = [max(held.values()) for held in stages]
    device = max(peaks)
    most = stages[peaks.index(device)]
    stage = max(most, key=most.__getitem__)
    # Transformers are loaded whole, in what they compute in, before anything is done with them.
    resident = {MODEL: weights.total + codec, LAYER: weights.total}.get(policy.placement, 0)
    system = max(plain.total + codec, resident + read)
    moved = 0 if shared else decode.moved
    if policy.streams_encoders and not shared:
        moved += sum(encoder.held for encoder in work.encoders)
    streamed = 0
    if policy.placement == MODEL:
        moved += work.sections * (weights.total + codec)
    elif policy.placement == LAYER:
        streamed = work.calls * weights.total
    # Of a split transformer one device computes at a time.
    done = work.operations / flops / (1 if policy.placement == SPLIT else devices)
    others = sum(part.operations for part in (*work.encoders, encode, decode)) / flops
    seconds = max(done, streamed / bandwidth) + others + moved / bandwidth
    if shared:
        device, system = max(device, system), 0
    return Choice(
        policy=policy,
        device=device,
        system=system,
        stage=stage,
        moved=moved + streamed,
        seconds=seconds,
        fits=device + spare <= room[0],
        fits_system=shared or system <= room[1],
        devices=tuple(peaks) if devices > 1 else (),
    )


def _stages(policy: Policy, work: Work, devices: int, *, shared: bool) -> list[dict[str, int]]:
    """Bytes of each stage on each device that has a part in it.

    Encoders are on the first device, and the codec too but of a split transformer, whose last has it. Each
    device is taken to hold all activations of a section.
    """
    weights = work.weights[policy.storage]
    encode, decode = work.codec[int(policy.tiled)]
    codec = encode.weights.total
    split = policy.placement == SPLIT
    # What stays on each device; by models, the codec is beside an encoder, for it has just seen the picture.
    stays = [{DEVICE: weights.total, MODEL: 0, LAYER: 0}.get(policy.placement, 0)] * devices
    if split:
        stays = [weights.total - sum(weights.blocks), *[0] * (devices - 1)]
        stays[-1] += codec
        shares = divide(weights.blocks, stays)
        for at, share in enumerate(shares):
            stays[at] += sum(weights.blocks[number] for number in share)
    elif policy.placement != MODEL:
        stays[0] += codec
    own = {MODEL: weights.total, LAYER: weights.layers}.get(policy.placement, 0)
    found = [{"transformer": held + own + weights.unpacked + work.activations} for held in stays]
    first, last = found[0], found[-1 if split else 0]
    for encoder in work.encoders:
        whole = shared or not policy.streams_encoders
        brought = encoder.weights.total if whole else encoder.weights.layers
        first[encoder.name] = max(stays[0], 0 if split else codec) + brought + encoder.activations
    for step in (encode, decode):
        last[step.name] = max(stays[-1 if split else 0], codec) + step.activations
    return found
