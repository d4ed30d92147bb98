"""Peaks of memory: what tensors take, counted as they come and go, or what a GPU's allocator gave out.

Counting sees every tensor that PyTorch makes, with what autograd keeps, and no buffers inside a kernel, but
for one that it is told of. It is the same for tensors without data, so that what this machine cannot carry
out can be counted too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import torch
from torch._guards import active_fake_mode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = [getattr(torch.ops.aten, name) for name in ("convolution", "conv1d", "conv2d", "conv3d")]
"""The first is what the others come to, but for inference mode."""


class Meter(Protocol):
    """Used as a context around what is weighed."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: Any) -> Any: ...
    def rewind(self) -> None:
        """Begin a new peak at what is held now."""
        ...

    @property
    def live(self) -> int:
        """Bytes held now."""
        ...

    @property
    def peak(self) -> int:
        """The most bytes held at once since the last ``rewind``."""
        ...


class Tally(TorchDispatchMode):
    """Bytes of all tensors that are made while it is active, each storage once, until it is freed.

    Of a tensor that several processes share the part that is here counts.

    Args:
        held: tensors from before, which count from the beginning.
        apart: a device whose tensors do not count.
        copies: the one that a convolution on a CPU makes of its input, in oneDNN's own layout, counts.
    """

    def __init__(
        self,
        held: Iterable[torch.Tensor] = (),
        apart: torch.device | None = None,
        *,
        copies: bool = False,
    ) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.apart, self.copies = apart, copies
        self._known: dict[int, int] = {}
        for tensor in held:
            self._hold(tensor)

    def rewind(self) -> None:
        self.peak = self.live

    def _hold(self, tensor: torch.Tensor) -> None:
        tensor = getattr(tensor, "_local_tensor", tensor)
        if tensor.device == self.apart:
            return
        storage = tensor.untyped_storage()
        if id(storage) not in self._known:
            self._known[id(storage)] = 0
            self._resize(id(storage), storage.nbytes())
            weakref.finalize(storage, self._free, id(storage)).atexit = False

    def _resize(self, known: int, size: int) -> None:
        self.live += size - self._known[known]
        self._known[known] = size
        self.peak = max(self.peak, self.live)

    def _free(self, known: int) -> None:
        self.live -= self._known.pop(known)

    def __enter__(self) -> Tally:
        # Whole weights of fully_shard are storages that it empties and fills, which no mode is told of.
        original = self._original = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            made = original(storage, size)
            if id(storage) in self._known:
                self._resize(id(storage), size)
            return made

        torch.UntypedStorage.resize_ = resize  # type: ignore[assignment]
        self._fakes = active_fake_mode()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._original  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a shared tensor does it on the part that is here, which is seen then
        made = func(*args, **(kwargs or {}))
        # Shapes of shared tensors are worked out on whole ones that are not there.
        if active_fake_mode() is self._fakes:
            for leaf in tree_leaves(made):
                if isinstance(leaf, torch.Tensor):
                    self._hold(leaf)
            if self.copies and func.overloadpacket in CONVOLUTIONS:
                self.peak = max(self.peak, self.live + args[0].nbytes)
        return made


class CudaMeter:
    """What CUDA's caching allocator has given out; its own reserve and CUDA's context are not in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> CudaMeter:
        self.rewind()
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def rewind(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def live(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    @property
    def peak(self) -> int:
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


def meter_for(device: torch.device, held: Iterable[torch.Tensor]) -> Meter:
    return CudaMeter(device) if device.type == "cuda" else Tally(held)


def tensors_in(*things: Any) -> list[torch.Tensor]:
    """Tensors in modules, optimisers, dataclasses and containers, with their gradients."""
    found: list[torch.Tensor] = []
    for leaf in tree_leaves(list(things)):
        if isinstance(leaf, torch.Tensor):
            found += [leaf] if leaf.grad is None else [leaf, leaf.grad]
        elif isinstance(leaf, torch.nn.Module):
            found += tensors_in(*leaf.parameters(), *leaf.buffers())
        elif isinstance(leaf, torch.optim.Optimizer):
            found += tensors_in(*(list(slots.values()) for slots in leaf.state.values()))
        elif is_dataclass(leaf):
            found += tensors_in(*(getattr(leaf, field.name) for field in fields(leaf)))
    return found


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that tensors take, those that share a storage once."""
    return Tally(tensors).live
