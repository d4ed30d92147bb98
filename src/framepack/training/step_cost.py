"""What one optimisation step takes on each of the devices that share it, counted on tensors without data.

The step is the training code's own: its loss, masters, optimiser and, for several devices, its shards, in a
process group that passes nothing on. Blocks of a stack are alike, so a few are counted, and what one more of
them adds is taken as often as there are more. For the peak that is done moment by moment: at each, what is
held grows evenly with the blocks, and only which moment holds most changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from framepack.packing.schedule import Grid, Kernel
from framepack.resources.hollow import Architecture, empty_weights
from framepack.resources.operations import operation_counter
from framepack.resources.section_cost import Shape, packed_context, steering
from framepack.resources.tally import Tally
from framepack.training.finetune import make_trainable
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.flow_matching import Shown, flow_loss
from framepack.training.hollow import HELD, HollowTraining
from framepack.training.processes import Processes
from framepack.training.steps import attention_in

FORWARD, LOSS, BACKWARD, UPDATE = "forward", "loss", "backward", "optimiser"

Counts = dict[object, int]


@dataclass(frozen=True)
class StepCount:
    """One step of one draw, on one device.

    moments: most bytes at once, by the part of the step, and the block at work. held: bytes between steps
    and, the gradients, after backward. operations: of forward and backward, with what checkpointing computes
    again.
    """

    moments: dict[tuple[str, ...], int]
    held: dict[str, int]
    operations: int

    @property
    def most(self) -> int:
        return max(self.moments.values())

    @property
    def peaks(self) -> dict[str, int]:
        """Most bytes in each part of the step."""
        parts = (FORWARD, LOSS, BACKWARD, UPDATE)
        return {part: max(b for moment, b in self.moments.items() if moment[0] == part) for part in parts}

    @property
    def dearest(self) -> str:
        return max(self.peaks, key=self.peaks.__getitem__)


class StepCost:
    """Counts steps of one transformer on one latent grid.

    Args:
        config: how it is trained. kernels: of the methods to be counted. timestep: of the context.
        device: where it would be trained. processes: from `pretended`, which must last as long.

    Raises:
        InputError, ModelError: settings that it cannot be trained by.
    """

    def __init__(
        self,
        architecture: Architecture,
        grid: Grid,
        config: FineTuneConfig,
        *,
        kernels: Iterable[Kernel],
        timestep: float | None,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.architecture, self.grid, self.config = architecture, grid, config
        self.timestep, self.device, self.processes = timestep, device, processes
        self.dtype = getattr(torch, config.dtype)
        self._mode = FakeTensorMode()
        self._kernels = tuple(dict.fromkeys((architecture.spec.base_kernel, *kernels)))
        # Two at least: what is gathered beforehand for the next block is not there for the last.
        blocks = architecture.blocks
        least = {name: min(count, 2) for name, count in blocks.items()}
        self._parts = [(1, self._made(least))]
        for name, count in blocks.items():
            if count > least[name]:
                self._parts.append((count - least[name], self._made(least | {name: least[name] + 1})))
        self.parameters, self.trained = (
            self._whole([{0: sum(p.numel() for p in of(part))} for _, part in self._parts])[0]
            for of in (lambda part: part.transformer.parameters(), lambda part: part.masters.live.values())
        )
        self._counts: dict[tuple[Shape, int], StepCount] = {}

    def _made(self, blocks: Mapping[str, int]) -> HollowTraining:
        transformer = self.architecture.hollow(self._kernels, self.dtype, blocks=blocks)
        make_trainable(transformer, self.architecture.spec, self.config)
        with self._mode:
            empty_weights(transformer)
        return HollowTraining(transformer, self.config, self.device, self.processes, self._mode)

    def _whole(self, parts: list[Counts]) -> Counts:
        """What the whole model comes to, by what each of its parts does."""
        more = [(times, part) for (times, _), part in zip(self._parts, parts, strict=True)][1:]
        return {
            key: value + sum(n * (part[key] - value) for n, part in more) for key, value in parts[0].items()
        }

    def count(self, shape: Shape, batch: int) -> StepCount:
        """A draw of ``batch`` samples on each device, carried out without data."""
        if (shape, batch) not in self._counts:
            found = self._whole([self._counted(part, shape, batch) for _, part in self._parts])
            moments = {key: value for key, value in found.items() if isinstance(key, tuple)}
            held = {name: found[name] for name in HELD}
            self._counts[shape, batch] = StepCount(moments, held, found["operations"])
        return self._counts[shape, batch]

    def largest(self, shape: Shape, room: float) -> int:
        """The most samples of a draw on each device whose peak is within so many bytes; 0 where one's is not.

        At every moment what is held grows evenly with the batch, so that no peak lies below a line through
        two smaller ones: lines foretell a batch that is too large, and most often by one.
        """
        one, two = (self.count(shape, samples).moments for samples in (1, 2))
        if max(one.values()) > room:
            return 0
        grown = {moment: two[moment] - one[moment] for moment in one}
        guess = 1 + min(int((room - one[moment]) // more) for moment, more in grown.items() if more > 0)
        fits, too_large = 1, guess + 1
        while too_large - fits > 1:
            if self.count(shape, guess).most <= room:
                fits = guess
            else:
                too_large = guess
            guess = (fits + too_large) // 2
        return fits

    def _counted(self, part: HollowTraining, shape: Shape, batch: int) -> Counts:
        with self._mode, Tally(part.held()) as tally:
            moments = _Moments(tally, part.stacks)
            shown = self._shown(part.transformer, shape, batch)
            with operation_counter() as counter, moments.watched(), attention_in(self.config, self.device):
                rng = np.random.default_rng(0)
                base = self.architecture.spec.base_kernel
                loss = flow_loss(rng, shown, part.transformer, self.config.objective, base, self.dtype)
                moments.enter(LOSS)
                loss.backward()
            counts: Counts = {**part.weighed(), "operations": counter.get_total_flops()}
            del shown, loss
            moments.enter(UPDATE)
            part.masters.step(0.0, self.config.clip)
            moments.enter("")
        return counts | moments.peaks

    def _shown(self, transformer: Any, shape: Shape, batch: int) -> Shown:
        spec, config = self.architecture.spec, transformer.config

        def empty(*sizes: int) -> torch.Tensor:
            return torch.empty(batch, *sizes)

        context = packed_context(
            shape,
            spec.latent_channels,
            self.grid,
            empty,
            aligned=bool(config.aligned),
            timestep=self.timestep,
        )
        steered = replace(steering(self.architecture, config, empty), guidance=self.config.objective.guidance)
        target = empty(spec.latent_channels, shape.target, *self.grid)
        return Shown(target, steered, torch.arange(shape.target), context)


class _Moments:
    """The most bytes of a tally between the moments of a step, by what it is and the block at work.

    Of a stack only its first and its last block are told: what lies between them lies between theirs.
    """

    def __init__(self, tally: Tally, stacks: Mapping[str, list[Any]]) -> None:
        self.tally, self.stacks = tally, stacks
        self.peaks: Counts = {}
        self._now: object = (FORWARD, "")
        self._seen: set[object] = set()

    def enter(self, *moment: object) -> None:
        if self._now is not None:
            self.peaks[self._now] = self.tally.peak
        self.tally.rewind()
        self._now = None if moment[-1] is None else (*moment, "")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While it lasts, blocks say when they begin to work, forward and backward."""
        handles = []
        for name, blocks in self.stacks.items():
            for at, block in enumerate(blocks):
                place = "first" if at == 0 else "last" if at == len(blocks) - 1 else None
                handles.append(block.register_forward_pre_hook(partial(self._before, name, at, place)))
                handles.append(block.register_forward_hook(partial(self._after, name, at, place)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str, at: int, place: str | None, block: Any, given: Any) -> None:
        if (name, at) not in self._seen:  # else it is computed again for the gradient
            self.enter(FORWARD, name, place)

    def _after(self, name: str, at: int, place: str | None, block: Any, given: Any, made: Any) -> None:
        tensor = made[0] if isinstance(made, tuple) else made
        if (name, at) not in self._seen and tensor.requires_grad:
            tensor.register_hook(lambda gradient: self.enter(BACKWARD, name, place))
        self._seen.add((name, at))
