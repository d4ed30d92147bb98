"""bfloat16 weights with float32 masters, their optimisers, their average, and how these are stored."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from framepack.data.encoded import whole
from framepack.errors import InputError
from framepack.training.state import keep_only, state_files

ROWS = "rows"
"""Metadata of a file that has a part of each tensor: the first row of it, by name, as JSON."""
_CONSTANT = ("qmap1", "qmap2")
"""What bitsandbytes keeps beside its moments and never changes; all parameters share it."""


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Block matrices take Muon; embeddings, kernels, norms and biases take AdamW."""
    return parameter.ndim == 2 and "blocks." in name


class Masters:
    """Owns the float32 copy that optimisers change; the modules keep the precision they compute in.

    Args:
        modules: name -> module of which the parameters that require gradients are trained.
        rate, weight_decay: of the optimisers.
        ema: decay of the averaged weights; None keeps no average.
        muon: for matrices of blocks, with AdamW for the others; false: AdamW for all.
        adamw: the class where it is for all, see ``adamw_named``.
    """

    part, parts = 0, 1
    """Which of the files of a state is this process's, and how many there are."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        *,
        rate: float,
        weight_decay: float,
        ema: float | None,
        muon: bool = True,
        adamw: type[torch.optim.Optimizer] = torch.optim.AdamW,
    ) -> None:
        self.live = {
            f"{prefix}.{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.master = {name: self._master(parameter) for name, parameter in self.live.items()}
        self.average = {} if ema is None else {n: p.detach().clone() for n, p in self.master.items()}
        self.rate, self.ema, self.updates = rate, ema, 0
        self.divisible = adamw is torch.optim.AdamW
        self.optimisers = self._with_muon(weight_decay) if muon else self._adamw(weight_decay, adamw)

    def _master(self, live: torch.Tensor) -> torch.Tensor:
        return live.detach().float().clone().requires_grad_()

    def _with_muon(self, weight_decay: float) -> list[torch.optim.Optimizer]:
        matrices = [p for n, p in self.master.items() if is_matrix(n, p)]
        others = [p for n, p in self.master.items() if not is_matrix(n, p)]
        return [
            torch.optim.Muon(
                matrices, lr=self.rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=self.rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def _adamw(self, weight_decay: float, kind: Any) -> list[torch.optim.Optimizer]:
        """Biases and gains do not decay."""
        groups = [
            {"params": [p for p in self.master.values() if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.master.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [kind([g for g in groups if g["params"]], lr=self.rate)]

    # A step ----------------------------------------------------------------------------------------

    def step(self, scale: float, clip: float) -> torch.Tensor:
        """One update from the gradients averaged over processes; returns their norm before clipping.

        ``scale`` multiplies the learning rate. The norm is a tensor: reading it waits for a GPU.
        """
        norm = self._take_gradients(clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * scale
            optimiser.step()
        with torch.no_grad():
            self._publish()
            for parameter in (*self.live.values(), *self.master.values()):
                parameter.grad = None  # nothing of it is held while the next is made
            if self.ema is not None:
                # A plain mean at first: with the full decay the start would weigh for hundreds of steps.
                keep = min(self.ema, self.updates / (self.updates + 1))
                torch._foreach_lerp_(list(self.average.values()), list(self.master.values()), 1 - keep)
            self.updates += 1
        return norm

    def _take_gradients(self, clip: float) -> torch.Tensor:
        """Give the masters their gradients, clipped to a common norm; returns it as it was."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.live.values()]
        flat = torch.cat([grad.float().flatten() for grad in grads])
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        norm = flat.norm()
        flat *= torch.clamp(clip / (norm + 1e-6), max=1.0)
        parts = flat.split([p.numel() for p in self.live.values()])
        for master, part in zip(self.master.values(), parts, strict=True):
            master.grad = part.view_as(master)
        return norm

    def _publish(self) -> None:
        """Have the modules compute with the masters' values."""
        torch._foreach_copy_(list(self.live.values()), list(self.master.values()))

    # The modules, for others -----------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules with the averaged weights, where there is an average, and then as they were."""
        with torch.no_grad():
            for name, average in self.average.items():
                self.live[name].copy_(average)
            try:
                yield
            finally:
                for name in self.average:
                    self.live[name].copy_(self.master[name])

    def gathered(self, module: Any) -> Any | None:
        """A module of whole weights as they are now, to save; None where another process saves.

        Every process must ask. ``module`` is the only one that is trained.
        """
        return module

    def at_hand(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """While it lasts this process may call the modules by itself, if one of the processes wants to."""
        return contextlib.nullcontext()

    # On disk ---------------------------------------------------------------------------------------

    def _state(self) -> dict[str, torch.Tensor]:
        names = {id(p): n for n, p in self.master.items()}
        state = {f"master/{n}": p.detach() for n, p in self.master.items()}
        state |= {f"average/{n}": p for n, p in self.average.items()}
        for optimiser in self.optimisers:
            for parameter, slots in optimiser.state.items():
                for key, value in slots.items():
                    if key not in _CONSTANT:
                        state[f"optimiser/{names[id(parameter)]}/{key}"] = torch.as_tensor(value)
        return {n: t.contiguous() for n, t in state.items()}

    def save(self, path: Path) -> None:
        """Everything that the next step needs, replaced in one move.

        Raises:
            OutputError: it cannot be written; what was there before is as it was.
        """
        with whole(path) as part:
            save_file(self._state(), part, metadata={"step": json.dumps(self.updates)})
        keep_only(path, (path,))

    def load(self, path: Path) -> int:
        """Continue from ``save``, of any number of processes; returns the number of finished steps.

        Raises:
            InputError: moments in blocks of other parts than this process has.
        """
        files = state_files(path)
        if files and not self.divisible:
            if len(files) != self.parts:
                raise InputError(
                    f"'{path.parent}' was saved by {len(files)} processes, and moments of 8 bits cannot be "
                    f"divided anew: go on with {len(files)}"
                )
            files = (files[self.part],)
        if files:
            self._make_slots()
        for file in files:
            with safe_open(file, "pt") as held:
                said = held.metadata()
                self.updates = json.loads(said["step"])
                self._read(held, json.loads(said.get(ROWS, "{}")))
        with torch.no_grad():
            self._publish()
        return self.updates

    def _make_slots(self) -> None:
        """Have the optimisers make what they keep, by a step whose result is then overwritten."""
        for master in self.master.values():
            master.grad = torch.zeros_like(master)
        for optimiser in self.optimisers:
            optimiser.step()

    @torch.no_grad()
    def _read(self, held: Any, rows: dict[str, int]) -> None:
        """Take over what one file has of this process's part; ``rows``: where the file's own begins."""
        slots = {
            name: optimiser.state[self.master[name]]
            for optimiser in self.optimisers
            for group in optimiser.param_groups
            for name in self._names(group["params"])
        }
        for key in held.keys():  # noqa: SIM118
            kind, name, *slot = key.split("/")
            kept: Any = {"master": self.master, "average": self.average, "optimiser": slots.get(name)}[kind]
            at = slot[0] if slot else name
            if not isinstance(kept[at], torch.Tensor):
                kept[at] = held.get_tensor(key).item()
            elif kept[at].ndim == 0:
                kept[at].copy_(held.get_tensor(key))
            else:
                start = rows.get(name, 0) - self.first_row(name)
                part = held.get_slice(key)
                stop = min(start + part.get_shape()[0], len(kept[at]))
                if max(start, 0) < stop:
                    kept[at][max(start, 0) : stop].copy_(part[max(-start, 0) : stop - start])

    def first_row(self, name: str) -> int:
        """Where this process's part of a parameter begins."""
        return 0

    def _names(self, parameters: list[torch.Tensor]) -> list[str]:
        wanted = {id(p) for p in parameters}
        return [n for n, p in self.master.items() if id(p) in wanted]
