"""``metrics.jsonl`` of a training run: one row for each few steps, each step once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist


class Log:
    """Means over the steps since the last row, over all processes; nothing is read from a GPU in between.

    Args:
        path: of the file, which rank 0 writes. done: finished steps; rows of later ones, left by a run
            that ended before it saved them, are cut off.
    """

    def __init__(self, path: Path, done: int, *, rank: int) -> None:
        self.path, self.rank = path, rank
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []
        if rank == 0 and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= done]
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text("".join(line + "\n" for line in kept))
            unfinished.replace(path)

    def add(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        self._losses.append(loss)
        self._norms.append(norm)

    def write(self, step: int) -> tuple[float, float]:
        """Write the row of ``step`` and return its loss and norm; every process must call it."""
        means = torch.stack([torch.stack(part).mean() for part in (self._losses, self._norms)])
        self._losses, self._norms = [], []
        if dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        loss, norm = means.tolist()
        if self.rank == 0:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "loss": loss, "norm": norm}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return loss, norm


def _step(line: str) -> float:
    """The step of a row; a torn one counts as never."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
