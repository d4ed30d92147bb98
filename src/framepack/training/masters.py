"""bfloat16 weights with float32 masters, their optimisers, their average, and how these are stored."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from framepack.data.encoded import whole


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
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        *,
        rate: float,
        weight_decay: float,
        ema: float | None,
        muon: bool = True,
    ) -> None:
        self.live = {
            f"{prefix}.{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.master = {n: p.detach().float().clone().requires_grad_() for n, p in self.live.items()}
        self.average = {} if ema is None else {n: p.detach().clone() for n, p in self.master.items()}
        self.rate, self.ema, self.updates = rate, ema, 0
        self.optimisers = self._with_muon(weight_decay) if muon else self._adamw(weight_decay)

    def _with_muon(self, weight_decay: float) -> list[torch.optim.Optimizer]:
        matrices = [p for n, p in self.master.items() if is_matrix(n, p)]
        others = [p for n, p in self.master.items() if not is_matrix(n, p)]
        return [
            torch.optim.Muon(
                matrices, lr=self.rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=self.rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def _adamw(self, weight_decay: float) -> list[torch.optim.Optimizer]:
        """Biases and gains do not decay."""
        groups = [
            {"params": [p for p in self.master.values() if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.master.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [torch.optim.AdamW([g for g in groups if g["params"]], lr=self.rate)]

    def step(self, scale: float, clip: float) -> torch.Tensor:
        """One update from the gradients averaged over processes; returns their norm before clipping.

        ``scale`` multiplies the learning rate. The norm is a tensor: reading it waits for a GPU.
        """
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
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * scale
            optimiser.step()
        with torch.no_grad():
            torch._foreach_copy_(list(self.live.values()), list(self.master.values()))
            for parameter in self.live.values():
                parameter.grad = None
            if self.ema is not None:
                # A plain mean at first: with the full decay the start would weigh for hundreds of steps.
                keep = min(self.ema, self.updates / (self.updates + 1))
                torch._foreach_lerp_(list(self.average.values()), list(self.master.values()), 1 - keep)
            self.updates += 1
        return norm

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

    def _state(self) -> dict[str, torch.Tensor]:
        names = {id(p): n for n, p in self.master.items()}
        state = {f"master/{n}": p.detach() for n, p in self.master.items()}
        state |= {f"average/{n}": p for n, p in self.average.items()}
        for optimiser in self.optimisers:
            for parameter, slots in optimiser.state.items():
                for key, value in slots.items():
                    state[f"optimiser/{names[id(parameter)]}/{key}"] = torch.as_tensor(value)
        return {n: t.contiguous() for n, t in state.items()}

    def save(self, path: Path) -> None:
        """Everything that the next step needs, replaced in one move.

        Raises:
            OutputError: it cannot be written; what was there before is as it was.
        """
        with whole(path) as part:
            save_file(self._state(), part, metadata={"step": json.dumps(self.updates)})

    def load(self, path: Path) -> int:
        """Continue from ``save``; returns the number of finished steps."""
        owner = {n: o for o in self.optimisers for g in o.param_groups for n in self._names(g["params"])}
        with safe_open(path, "pt") as file, torch.no_grad():
            self.updates = json.loads(file.metadata()["step"])
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                kind, name = key.split("/")[:2]
                if kind == "master":
                    self.master[name].copy_(tensor)
                    self.live[name].copy_(tensor)
                elif kind == "average":
                    self.average[name].copy_(tensor)
                else:
                    # Counters of steps stay on the CPU, where the optimiser made them and reads them.
                    place = tensor.to(self.master[name].device) if tensor.ndim else tensor
                    owner[name].state[self.master[name]][key.split("/")[2]] = place
        return self.updates

    def _names(self, parameters: list[torch.Tensor]) -> list[str]:
        wanted = {id(p) for p in parameters}
        return [n for n, p in self.master.items() if id(p) in wanted]
