"""The tail of a history costs what a section adds to it, and has the same bytes however it was reached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from framepack.generation.store import RunStore
from framepack.generation.tail import Tails

POOL = (1, 32, 32)


class Counted:
    """Latents by timeline index, each the same on every call; ``reads`` tells which were asked for."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __call__(self, frame: int) -> torch.Tensor:
        self.reads.append(frame)
        return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(frame))


def tails(latent: Counted) -> Tails:
    return Tails(lambda frame: f"latent {frame}", latent)


# Forward in time a tail grows at its end, backward at its beginning: far end first, both grow at the end.
GROWING = {
    "forward": [range(stop) for stop in range(3, 120, 3)],
    "backward": [range(200, start, -1) for start in range(197, 60, -3)],
    "in pieces": [(0, 1, *range(7, stop)) for stop in range(9, 60, 3)],
}


@pytest.mark.parametrize("steps", GROWING.values(), ids=GROWING)
def test_each_frame_is_read_once(steps: list[range]) -> None:
    latent = Counted()
    grown = tails(latent)
    for frames in steps:
        mean = grown.mean(frames)
    assert latent.reads == list(steps[-1])
    latent.reads.clear()
    for frames in steps:
        pooled = grown.pooled(frames, POOL)
    assert latent.reads == list(steps[-1])
    held = torch.stack([Counted()(frame) for frame in steps[-1]], dim=1)[None]
    torch.testing.assert_close(mean, held.mean(2, keepdim=True))
    torch.testing.assert_close(pooled, held.mean((3, 4), keepdim=True))


@pytest.mark.parametrize("steps", GROWING.values(), ids=GROWING)
def test_it_does_not_matter_where_it_was_taken_up(steps: list[range]) -> None:
    grown, fresh = tails(Counted()), tails(Counted())
    for frames in steps:
        mean, reference = grown.mean(frames), grown.reference(frames)
    assert torch.equal(mean, fresh.mean(steps[-1])) and reference == fresh.reference(steps[-1])
    assert torch.equal(grown.mean(steps[0]), tails(Counted()).mean(steps[0]))  # begun anew
    assert len({fresh.reference(frames) for frames in steps}) == len(steps)


def test_what_is_placed_over_a_tail_changes_it(tmp_path: Path) -> None:
    with RunStore(tmp_path, {}) as store:
        store.place(store.add("a", 0, range(4), torch.zeros(2, 4, 3, 3)))
        before = store.tails.reference(range(4))
        assert store.tails.mean(range(4)).abs().max() == 0
        store.place(store.add("b", 0, [1], torch.ones(2, 1, 3, 3)))
        assert torch.equal(store.tails.mean(range(4)), torch.full((1, 2, 1, 3, 3), 0.25))
        assert store.tails.reference(range(4)) != before
