"""One training step of one transformer on sections with a given history, carried out or only counted.

Legend: B samples, C latent channels, N frames, h w latent grid.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from framepack.conditioning.embeds import Conditioning
from framepack.models.attention import ExplicitAttention
from framepack.packing.context import pack
from framepack.resources.hollow import IMAGE_TOKENS, empty_weights
from framepack.resources.operations import operation_counter
from framepack.resources.tally import Tally, bytes_of, meter_for, tensors_in
from framepack.sampling.shown import context_timestep
from framepack.training.flow_matching import Shown, flow_loss
from framepack.training.lora import attach
from framepack.training.masters import Masters
from shared.memory import free_cache
from shared.subject import IMAGE, Point, Subject

T = TypeVar("T")


@dataclass(frozen=True)
class Seconds:
    """Of one step; ``cpu``: of all threads, hardly moved by what else the machine does."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Peaks:
    """Most bytes held during forward and backward, and during the optimiser's step."""

    backward: int
    update: int

    @property
    def most(self) -> int:
        return max(self.backward, self.update)


def ready(subject: Subject, transformer: Any) -> Any:
    """The transformer as its configuration trains it, and with a kernel for full history."""
    config = subject.config
    transformer.add_kernels([subject.spec.base_kernel])
    if config.lora is not None:
        attach(transformer, subject.spec.family, config.lora, config.seed)
    else:
        transformer.requires_grad_(True)
    if config.checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer.train()


class Step:
    """The training code's own step, at a learning rate of 0 so that the weights stay the same.

    Args:
        transformer: the subject's, made ready.
        explicit: attention as training has it on CPUs.
    """

    def __init__(self, subject: Subject, transformer: Any, device: torch.device, *, explicit: bool) -> None:
        config = subject.config
        self.subject, self.transformer, self.device, self.explicit = subject, transformer, device, explicit
        self.masters = Masters(
            {"model": transformer},
            rate=config.rate,
            weight_decay=config.weight_decay,
            ema=config.ema,
            muon=False,
        )
        # The first step makes the optimiser's moments, which the others find there.
        self.backward(self.show(Point(IMAGE), 1))
        self.update()

    def show(self, point: Point, batch: int) -> Shown:
        """Random latents and embeddings in the places of real ones."""
        subject, section = self.subject, self.subject.section(point)
        channels, (h, w) = subject.spec.latent_channels, subject.latent_grid

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(batch, *shape, device=self.device)

        def fetch(frames: Sequence[int]) -> torch.Tensor:
            return random(channels, len(frames), h, w)

        target, held = fetch(section.frames), self.transformer.config
        if subject.spec.family == "wan":
            steered = Conditioning(prompt=random(subject.prompt_tokens, held.text_dim))
        else:
            steered = Conditioning(
                prompt=random(subject.prompt_tokens, held.text_embed_dim),
                pooled=random(held.pooled_projection_dim),
                image=random(IMAGE_TOKENS, held.image_proj_dim) if held.has_image_proj else None,
                guidance=subject.config.objective.guidance,
            )
        timestep = context_timestep(subject.method)
        context = pack(section, fetch, target, aligned=bool(held.aligned), timestep=timestep)
        return Shown(target, steered, torch.tensor(section.positions), context)

    def backward(self, shown: Shown) -> None:
        subject, rng = self.subject, np.random.default_rng(0)
        with ExplicitAttention() if self.explicit else contextlib.nullcontext():
            loss = flow_loss(
                rng,
                shown,
                self.transformer,
                subject.config.objective,
                subject.spec.base_kernel,
                subject.dtype,
            )
        loss.backward()

    def update(self) -> None:
        self.masters.step(0.0, self.subject.config.clip)

    def held(self) -> list[torch.Tensor]:
        """All that lies in memory between two steps."""
        return tensors_in(self.transformer, vars(self.masters))


class Real:
    """Steps that are carried out; what runs out of a GPU's memory gives None.

    Raises:
        torch.OutOfMemoryError: the weights and one image don't fit.
    """

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self.device = device
        transformer = ready(subject, subject.real(device))
        self.step = Step(subject, transformer, device, explicit=explicit(subject, device))

    def weigh(self, point: Point, batch: int) -> Peaks | None:
        return self._attempt(lambda: self._weigh(point, batch))

    def _weigh(self, point: Point, batch: int) -> Peaks:
        with meter_for(self.device, self.step.held()) as meter:
            shown = self.step.show(point, batch)
            meter.rewind()
            self.step.backward(shown)
            backward = meter.peak
            meter.rewind()
            self.step.update()
            return Peaks(backward, meter.peak)

    def weigh_within(self, memory: float, point: Point, batch: int) -> Peaks | None:
        """``weigh`` on a CUDA GPU that has no more than ``memory`` bytes."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        free_cache(self.device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), self.device)
        try:
            return self.weigh(point, batch)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def seconds(self, point: Point, batch: int) -> Seconds | None:
        return self._attempt(lambda: self._seconds(point, batch))

    def _seconds(self, point: Point, batch: int) -> Seconds:
        shown = self.step.show(point, batch)
        self._wait()
        begun, cpu = time.perf_counter(), time.process_time()
        self.step.backward(shown)
        self.step.update()
        self._wait()
        return Seconds(time.perf_counter() - begun, time.process_time() - cpu)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _attempt(self, run: Callable[[], T]) -> T | None:
        try:
            return run()
        except torch.OutOfMemoryError:
            pass  # until here the error's frames hold the step's tensors
        self.step.transformer.zero_grad(set_to_none=True)
        free_cache(self.device)
        return None


def explicit(subject: Subject, device: torch.device) -> bool:
    """Whether training on this device computes attention explicitly, as `training.finetune` has it."""
    return device.type == "cpu" and not subject.config.checkpointing


class Counted:
    """Steps on tensors without data: bytes and operations of what a step would be, exact and quick.

    Args:
        explicit: attention as training has it on CPUs; else kernels that keep no probabilities.
    """

    def __init__(self, subject: Subject, *, explicit: bool) -> None:
        self.subject, self.mode = subject, FakeTensorMode()
        self._peaks: dict[tuple[object, int], Peaks] = {}
        self._operations: dict[object, int] = {}
        transformer = ready(subject, subject.hollow())
        with self.mode:
            empty_weights(transformer)
        self.parameters = sum(p.numel() for p in transformer.parameters())
        with self.mode:
            self.step = Step(subject, transformer, torch.device("cpu"), explicit=explicit)
            self.fixed = bytes_of(self.step.held())
            self.trained = sum(p.numel() for p in self.step.masters.live.values())
            self._of_update = self._update_above()

    def _update_above(self) -> int:
        """How far the peak of an optimiser's step stands above weights, gradients and the rest before it."""
        for parameter in self.step.masters.live.values():
            parameter.grad = torch.zeros_like(parameter)
        with Tally(self.step.held()) as tally:
            begun = tally.live
            self.step.update()
        return tally.peak - begun

    def peaks(self, point: Point, batch: int) -> Peaks:
        key = (self._shape(point), batch)
        if key not in self._peaks:
            with self.mode, Tally(self.step.held()) as tally:
                shown = self.step.show(point, batch)
                tally.rewind()
                self.step.backward(shown)
                # The optimiser's step is the same for every sample; it makes gradients that there are not.
                made = bytes_of(p for p in self.step.masters.live.values() if p.grad is None)
                self._peaks[key] = Peaks(tally.peak, tally.live + made + self._of_update)
                self.step.transformer.zero_grad(set_to_none=True)
        return self._peaks[key]

    def operations(self, point: Point) -> int:
        """Floating-point operations of one sample, in matrix products, convolutions and attention."""
        key = self._shape(point)
        if key not in self._operations:
            with self.mode, operation_counter() as counter:
                self.step.backward(self.step.show(point, 1))
            self.step.transformer.zero_grad(set_to_none=True)
            self._operations[key] = counter.get_total_flops()
        return self._operations[key]

    def _shape(self, point: Point) -> object:
        """What a step's cost depends on: sections that see as much cost as much."""
        section = self.subject.section(point)
        levels = tuple((level.kernel, level.pool, level.mean, len(level.frames)) for level in section.context)
        return levels, len(section.frames)
