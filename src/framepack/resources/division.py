"""A transformer's blocks divided among several devices, in order, by bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from framepack.errors import InputError


def divide(blocks: Sequence[int], held: Sequence[int]) -> list[range]:
    """Which blocks each device has, so that the most bytes on one of them are as few as they can be.

    Args:
        blocks: bytes of each, in the order that tokens go through them.
        held: bytes that are on each device besides.

    Returns:
        Numbers of blocks by device: one after the other, all of them, one or more on each.

    Raises:
        InputError: fewer blocks than devices.
    """
    count, devices = len(blocks), len(held)
    if count < devices:
        raise InputError(f"{count} layers cannot be split among {devices} devices: use --devices {count}")
    before = [0, *accumulate(blocks)]
    # least[n]: of the devices so far with the first n blocks, the most bytes on one, and where each ends.
    least: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (0,))}
    for device, own in enumerate(held, 1):
        least = {
            end: min(
                (max(most, own + before[end] - before[begin]), (*ends, end))
                for begin, (most, ends) in least.items()
                if begin < end
            )
            for end in range(device, count - devices + device + 1)
        }
    return [range(*each) for each in pairwise(least[count][1])]
