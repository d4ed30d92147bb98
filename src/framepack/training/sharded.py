"""One model shared by several processes: PyTorch's fully_shard (FSDP2), with its shards for masters.

Every process has the same rows of each parameter, of its gradient, average and moments; a block's weights
are whole while it computes. What each process computes must therefore call the model as often as the others.
"""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from framepack.data.encoded import whole
from framepack.errors import InputError, OutputError
from framepack.training.masters import ROWS, Masters
from framepack.training.processes import Processes
from framepack.training.state import keep_only, shard_file, state_files


def shard(transformer: Any, processes: Processes, dtype: torch.dtype) -> Any | None:
    """Divide a model among processes, block by block; it moves to their devices.

    What is trained becomes float32. A model that is trained whole is gathered, and computes, in ``dtype``;
    gradients are summed in float32. fully_shard wants one dtype of all that is trained in a block, so the few
    weights that Wan's class else keeps in float32 (norms, time embedding) compute in ``dtype`` too. Under a
    LoRA every weight is gathered in its own dtype, the packing kernels in float32.

    Returns:
        process 0's copy of the model as it was, on the CPU, to save from; None in the others.

    Raises:
        InputError: a PyTorch that cannot average over processes of which some do not use a weight.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise InputError(
            f"several processes need PyTorch 2.13, this is {torch.__version__}: update it, or train with one"
        )
    original = copy.deepcopy(transformer).cpu() if processes.rank == 0 else None
    # Outputs are never changed in place, which is what this warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    everything = all(parameter.requires_grad for parameter in transformer.parameters())
    policy = MixedPrecisionPolicy(
        param_dtype=dtype if everything else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    blocks = [m for m in transformer.modules() if type(m).__name__ in transformer._no_split_modules]
    for unit in (*reversed(blocks), transformer):
        for parameter in unit.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    # A draw without history needs no packing kernel, another process's does.
    transformer.set_reduce_scatter_unused_params(True)
    return original


class ShardedMasters(Masters):
    """Masters that are the shards of the model's own parameters, with states in a file for each process.

    Args:
        processes: among which ``shard`` has divided the module. original: what it returned.
        Others as in `Masters`, of one module.
    """

    def __init__(
        self, modules: dict[str, nn.Module], *, processes: Processes, original: Any | None, **settings: Any
    ) -> None:
        self.processes, self.original = processes, original
        self.part, self.parts = processes.rank, processes.count
        ((self.prefix, self.module),) = modules.items()
        super().__init__(modules, muon=False, **settings)

    def _master(self, live: Any) -> torch.Tensor:
        with torch.no_grad():
            return live.to_local().detach().requires_grad_()

    def _take_gradients(self, clip: float) -> torch.Tensor:
        live: list[Any] = list(self.live.values())
        norm: Any = nn.utils.get_total_norm([parameter.grad for parameter in live])
        norm = norm.full_tensor()
        nn.utils.clip_grads_with_norm_(live, clip, norm)
        for parameter, master in zip(live, self.master.values(), strict=True):
            master.grad = parameter.grad.to_local()
        return norm

    def _publish(self) -> None:
        """Nothing to do: a master's memory is its parameter's."""

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Put the averages in the masters' places, and these in theirs."""
        self._reshard()
        for name, average in self.average.items():
            held = self.master[name].clone()
            self.master[name].copy_(average)
            average.copy_(held)

    @torch.no_grad()
    def gathered(self, module: Any) -> Any | None:
        """See `Masters.gathered`; parameter by parameter, so that a device never has more than one whole."""
        for name, parameter in self.live.items():
            full = parameter.full_tensor()  # type: ignore[attr-defined]
            if self.original is not None:
                self.original.get_parameter(name.removeprefix(f"{self.prefix}.")).copy_(full)
        return self.original

    @contextlib.contextmanager
    def at_hand(self, wanted: bool) -> Iterator[None]:
        """See `Masters.at_hand`: for so long every process holds all weights that it computes with."""
        if not self.processes.any(wanted):
            yield
            return
        root: Any = self.module
        blocks = [unit for unit in self._units() if unit is not root]
        for unit in (root, *blocks):
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            self._reshard()
            for unit in blocks:
                unit.set_reshard_after_forward(True, recurse=False)

    def _units(self) -> list[Any]:
        return [module for module in self.module.modules() if isinstance(module, FSDPModule)]

    def _reshard(self) -> None:
        """Drop whole weights that calls without a gradient have left, before others take their place."""
        for unit in self._units():
            unit.reshard()

    def save(self, path: Path) -> None:
        """As `Masters.save`, all processes or none.

        Raises:
            OutputError: a process cannot write its part; what was there before is as it was.
        """
        place = shard_file(path, self.updates, self.part, self.parts)
        said = {
            "step": json.dumps(self.updates),
            ROWS: json.dumps({name: self.first_row(name) for name in self.master}),
        }
        failure = None
        try:
            with whole(place) as part:
                save_file(self._state(), part, metadata=said)
        except OutputError as error:
            failure = error
        if self.processes.any(failure is not None):
            place.unlink(missing_ok=True)
            raise failure or OutputError(
                f"another process cannot write its part of '{path}': see what it says"
            )
        if self.part == 0:
            keep_only(path, state_files(path))

    def first_row(self, name: str) -> int:
        """As torch.chunk divides: all parts are as long as the first, and the last ones shorter or empty."""
        rows, mine = len(self.live[name]), len(self.master[name])
        each = -(-rows // self.parts)
        first = min(each * self.part, rows)
        assert mine == min(each, rows - first), f"{name}: {mine} of {rows} rows"
        return first
