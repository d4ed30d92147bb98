"""What is done where memory runs out in the middle of a run: nothing that is finished is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from framepack.errors import OutOfMemoryError, ran_out
from framepack.generation.config import RunConfig
from framepack.models.bundle import Bundle
from framepack.models.device import release

TILED = "memory does not suffice for whole frames: they are encoded and decoded in tiles"
TURNS = "memory does not suffice to decode a section while the next one is sampled: they take turns"

Result = TypeVar("Result")


def again_if_short(
    work: Callable[[], Result], may: Callable[[], bool], make_room: Callable[[], None]
) -> Result:
    """What ``work`` comes to. Where memory runs out in it, it is done again once room has been made.

    Args:
        may: whether there is room to be made. make_room: lets go of what was begun, and of more.
    """
    try:
        return work()
    except Exception as error:
        if not (ran_out(error) and may()):
            raise
    # Not in the handler, whose error holds all that was being computed.
    make_room()
    return work()


def tiled_if_short(
    bundle: Bundle, work: Callable[[], Result], before_again: Callable[[], None] = lambda: None
) -> Result:
    """What the codec's ``work`` comes to. Where memory runs out in it, it is done again in tiles.

    Args:
        before_again: lets go of what was begun.
    """
    codec: Any = bundle.codec

    def tile() -> None:
        before_again()
        release(bundle.device)
        codec.enable_tiling()

    return again_if_short(work, lambda: not getattr(codec, "tiled", True), tile)


@contextmanager
def told_if_short(config: RunConfig, bundle: Bundle, workdir: Path) -> Iterator[None]:
    """Say what is to be done where memory runs out.

    Raises:
        OutOfMemoryError: in place of what the allocator raised.
    """
    try:
        yield
        return
    except Exception as error:
        if not ran_out(error):
            raise
    raise OutOfMemoryError(
        f"memory ran out at {config.width}x{config.height} on {bundle.device}: what is finished is kept in "
        f"'{workdir}', and the same command goes on from there once there is more; "
        "a smaller --size needs less"
    )
