"""What the stages of a run come to under each policy: where its bytes are at most, and what is moved."""

from __future__ import annotations

from dataclasses import dataclass

from framepack.resources.companions import Companion
from framepack.resources.kinds import Simulated
from framepack.resources.machine import GB
from framepack.resources.policy import DEVICE, LAYER, MODEL, Policy
from framepack.resources.weights import Weights

RESERVE = 0.5
"""GB of a GPU that CUDA itself and its libraries take."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A policy and what it comes to.

    Attributes:
        device, system: most bytes at once on the device and in system memory.
        stage: in which the device holds most.
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


def fitted(policy: Policy, work: Work, room: tuple[float, float], flops: float, bandwidth: float) -> Choice:
    """What the work comes to under a policy.

    Args:
        room: bytes of the device and of the system. flops, bandwidth: operations and bytes a second.
    """
    shared = work.simulated.device.type != "cuda"
    weights, plain = work.weights[policy.storage], work.weights[None]
    encode, decode = work.codec[int(policy.tiled)]
    codec, read = encode.weights.total, max((e.held for e in work.encoders), default=0)
    # Beside an encoder there is what stays; by models, the codec too, which has just seen the start picture.
    stays = {DEVICE: weights.total + codec, MODEL: 0, LAYER: codec}[policy.placement]
    peaks = {}
    for encoder in work.encoders:
        whole = shared or not policy.streams_encoders
        brought = encoder.weights.total if whole else encoder.weights.layers
        peaks[encoder.name] = max(stays, codec) + brought + encoder.activations
    own = {DEVICE: 0, MODEL: weights.total, LAYER: weights.layers}[policy.placement]
    peaks["transformer"] = stays + own + weights.unpacked + work.activations
    for step in (encode, decode):
        peaks[step.name] = max(stays, codec) + step.activations
    spare = 0.0 if shared else RESERVE * GB
    both = peaks["transformer"] + decode.activations
    # Where both do not fit, a run finds out and has them take turns.
    if work.overlaps and policy.placement == DEVICE and not shared and both + spare <= room[0]:
        peaks[f"transformer, {decode.name}"] = both
    stage = max(peaks, key=peaks.__getitem__)
    # Transformers are loaded whole, in what they compute in, before anything is done with them.
    resident = {DEVICE: 0, MODEL: weights.total + codec, LAYER: weights.total}[policy.placement]
    system = max(plain.total + codec, resident + read)
    moved = sum(encoder.held for encoder in work.encoders) if policy.streams_encoders and not shared else 0
    streamed = 0
    if policy.placement == MODEL:
        moved += work.sections * (weights.total + codec)
    elif policy.placement == LAYER:
        streamed = work.calls * weights.total
    done = work.operations / flops
    others = sum(part.operations for part in (*work.encoders, encode, decode)) / flops
    seconds = max(done, streamed / bandwidth) + others + moved / bandwidth
    device = peaks[stage]
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
    )
