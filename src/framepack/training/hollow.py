"""A transformer in training without its weights: masters, optimiser and shards of tensors without data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from framepack.resources.tally import bytes_of, tensors_in
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.masters import Masters
from framepack.training.optimisers import adamw_named
from framepack.training.processes import Processes

STACKS = {"num_layers": ("blocks", "transformer_blocks"), "num_single_layers": ("single_transformer_blocks",)}
"""Modules of each stack of blocks, by the field that counts them."""
HELD = ("weights", "masters", "average", "moments", "gradients")
"""What is held, in the order that it is weighed in: of shards that are masters too nothing counts twice."""


@contextlib.contextmanager
def pretended(devices: int) -> Iterator[Processes]:
    """Processes that share one model, of which only this one is there: the second, for the first also keeps a
    copy in system memory. While it lasts, collectives pass nothing on."""
    device = torch.device("cpu")
    if devices == 1:
        yield Processes(device=device)
        return
    from torch.distributed._tools import fake_collectives  # noqa: F401  # of tensors without data
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=1, world_size=devices, store=FakeStore())
    try:
        yield Processes(device=device, rank=1, count=devices)
    finally:
        dist.destroy_process_group()


class HollowTraining:
    """A transformer without data, its masters and its optimiser, as they are after a first step."""

    def __init__(
        self,
        transformer: Any,
        config: FineTuneConfig,
        device: torch.device,
        processes: Processes,
        mode: FakeTensorMode,
    ) -> None:
        self.transformer = transformer
        settings: dict[str, Any] = {
            "rate": config.rate,
            "weight_decay": config.weight_decay,
            "ema": config.ema,
            "adamw": _adamw(config.optimiser, device),
        }
        self.masters: Masters
        if processes.count == 1:
            with mode:
                self.masters = Masters({"model": transformer}, muon=False, **settings)
        else:
            from framepack.training.sharded import ShardedMasters, shard

            shard(transformer, processes, getattr(torch, config.dtype))
            with mode:
                self.masters = ShardedMasters(
                    {"model": transformer}, processes=processes, original=None, **settings
                )
        with mode:
            for parameter in self.masters.live.values():
                parameter.grad = torch.zeros_like(parameter)
            self.masters.step(0.0, config.clip)
        self.stacks = {
            name: list(getattr(transformer, place))
            for name, places in STACKS.items()
            for place in places
            if hasattr(transformer, place)
        }

    def held(self) -> list[torch.Tensor]:
        return tensors_in(self.transformer, vars(self.masters))

    def weighed(self) -> dict[object, int]:
        """Bytes of each of `HELD`, after backward."""
        masters = self.masters
        gradients = [p.grad for p in masters.live.values() if p.grad is not None]
        weights = [*self.transformer.parameters(), *self.transformer.buffers()]
        things: tuple[Any, ...] = (
            [weight.detach() for weight in weights],
            [master.detach() for master in masters.master.values()],
            list(masters.average.values()),
            masters.optimisers,
            gradients,
        )
        found: dict[object, int] = {}
        tensors: list[torch.Tensor] = []
        for name, thing in zip(HELD, things, strict=True):
            before = bytes_of(tensors)
            tensors += tensors_in(thing)
            found[name] = bytes_of(tensors) - before
        return found


def _adamw(name: str, device: torch.device) -> Any:
    """The optimiser's class, which on a GPU changes all tensors at once.

    In 8 bits it only makes its moments, for its kernels want data.
    """
    kind: Any = adamw_named(name)
    if name == "adamw":
        return partial(kind, foreach=True) if device.type == "cuda" else kind

    class Still(kind):
        def fill_qmap(self) -> None:
            self.name2qmap = {name: torch.empty(256) for name in ("dynamic", "udynamic")}

        def update_step(self, *others: Any) -> None:
            pass

    return Still
