"""A model split among several devices of one process: each has some of the transformer's blocks, in order.

Tokens go from device to device; one computes at a time. What a block is given is brought to it by hooks of
accelerate's kind. What many blocks are given, such as rotary phases and modulation, is brought to a device
once: accelerate's own hook would do it again for each of them.

On the first device lies what comes before and after the blocks, and there encoders work; on the last one lies
the codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from framepack.errors import InputError
from framepack.models.bundle import Bundle
from framepack.models.loading import move_companions
from framepack.resources.division import divide
from framepack.resources.policy import Policy


def devices_for(policy: Policy, device: torch.device, count: int) -> tuple[torch.device, ...]:
    """The devices that a policy which splits has: ``count`` of them, or for 1 all GPUs that can be seen.

    A CPU stands for as many devices as are asked for, to try it out.

    Raises:
        InputError: fewer than there have to be, or a device that is alone.
    """
    if device.type == "cpu":
        return (device,) * count
    if device.type != "cuda":
        raise InputError(f"memory policy '{policy.name}' is for several GPUs, not for '{device.type}'")
    if device.index is not None:
        raise InputError(f"device '{device}' is one, '{policy.name}' is for several: give --device cuda")
    there = torch.cuda.device_count()
    if count > there:
        raise InputError(f"{count} devices: this machine has {there} GPUs: use at most {there}")
    if there < 2:
        raise InputError(
            f"memory policy '{policy.name}' is for several GPUs, and here is one: choose layers or auto"
        )
    return tuple(torch.device("cuda", index) for index in range(count if count > 1 else there))


def split(bundle: Bundle, devices: Sequence[torch.device]) -> Bundle:
    """The model on several devices, its transformer's blocks divided by bytes (`resources.division`).

    Weights go from where they are, a mapped file or system memory, straight to the device that has them.

    Raises:
        InputError: more devices than blocks.
    """
    transformer, first, last = bundle.transformer, devices[0], devices[-1]
    sizes = [_bytes_of(block) for block in transformer.stack]
    held = [0] * len(devices)
    held[0] = _bytes_of(transformer) - sum(sizes)
    held[-1] += _bytes_of(bundle.codec)
    shares = divide(sizes, held)
    place_blocks(transformer, shares, devices)
    lead(transformer.stack, shares, devices)
    move_companions(bundle, first, last)
    return replace(bundle, execution=first, devices=tuple(devices))


def _bytes_of(module: Any) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def place_blocks(transformer: Any, shares: Sequence[range], devices: Sequence[torch.device]) -> None:
    """Each block on its device, all else on the first one."""
    stack = transformer.stack
    for share, device in zip(shares, devices, strict=True):
        for number in share:
            stack[number].to(device)
    inside = {id(part) for block in stack for part in block.modules()}
    for part in transformer.modules():
        if id(part) not in inside:
            part._apply(lambda tensor: tensor.to(devices[0]), recurse=False)


def lead(stack: Sequence[nn.Module], shares: Sequence[range], devices: Sequence[torch.device]) -> None:
    """Have tokens go from block to block across devices, and back to the first one after the last block.

    The hooks are the innermost of a block's: a step cache that is put on it later sees only what lies on the
    first device, and can add up what it keeps of the first and of the last block.
    """
    for share, device in zip(shares, devices, strict=True):
        copies = WeakTensorKeyDictionary()
        for number in share:
            hook: ModelHook = Bring(device, copies)
            if number == len(stack) - 1:
                hook = SequentialHook(hook, Return(devices[0]))
            add_hook_to_module(stack[number], hook)


class Bring(ModelHook):
    """Brings what a module is given to its device.

    Args:
        copies: of what was brought before, as long as that is there; shared by the modules on the device.
    """

    def __init__(self, device: torch.device, copies: WeakTensorKeyDictionary) -> None:
        self.device, self._copies = device, copies

    @torch.compiler.disable
    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        found: tuple[Any, Any] = tree_map(self._here, (args, kwargs))
        return found

    def _here(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.device == self.device:
            return value
        if value not in self._copies:
            self._copies[value] = value.to(self.device)
        return self._copies[value]


class Return(ModelHook):
    """Brings what a module gives to a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @torch.compiler.disable
    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return tree_map(self._there, output)

    def _there(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, torch.Tensor) else value
