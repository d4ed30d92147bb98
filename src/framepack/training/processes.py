"""The processes that share one fine-tuning run, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from framepack.errors import InputError
from framepack.models.device import pick_device

PATIENCE = timedelta(hours=2)
"""How long the others wait while process 0 decodes samples, or saves what is for use."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among all: its device, its number from 0, and how many there are."""

    device: torch.device
    rank: int = 0
    count: int = 1

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them at least; every process must ask."""
        if self.count == 1:
            return flag
        told = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def share(self, draws: int, micro: int) -> int:
        """How many of a step's draws are this process's.

        Raises:
            InputError: not all processes would have as many.
        """
        if draws % self.count:
            raise InputError(
                f"{draws} draws a step cannot be shared evenly by {self.count} processes: make batch a "
                f"multiple of {self.count * micro}"
            )
        return draws // self.count


@contextlib.contextmanager
def processes(wanted: str) -> Iterator[Processes]:
    """This process alone, or among those of ``torchrun``, joined by NCCL on GPUs and by gloo on CPUs.

    A process group that is there already is used and left.

    Args:
        wanted: see ``pick_device``; of several GPUs each process takes its own.

    Raises:
        InputError: a device that is not there, or cannot be one of several.
    """
    device, count = pick_device(wanted), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(device=device)
        return
    if device.type == "cuda":
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise InputError(
                f"process {local} of this machine has no GPU, there are {there}: start torchrun with "
                f"--nproc-per-node {there}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise InputError(f"several processes cannot share device '{device.type}': use cuda or cpu")
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Processes(device=device, rank=dist.get_rank(), count=count)
    if ours:  # not after an error: the others may wait in a collective, and torchrun ends them
        dist.destroy_process_group()
