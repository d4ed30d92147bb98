"""The tail of a history, which grows with the video, at a cost per section that does not.

A tail is folded from its far end, the one that stays: what a section adds to it is folded in, and nothing
is read twice. The order of folding depends on the frames alone, so a run that was resumed has the same sums,
bit for bit, as one that never stopped.

Legend: C latent channels, N frames, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from framepack.generation.hashing import hash_json
from framepack.packing.context import pooled
from framepack.packing.schedule import Kernel

T = TypeVar("T")


class Fold(Generic[T]):
    """A value folded over a growing sequence of frames; a sequence that is no continuation begins anew."""

    def __init__(self, start: Callable[[], T], add: Callable[[T, int], T]) -> None:
        self._start, self._add = start, add
        self._done: Sequence[int] = ()
        self._value = start()

    def over(self, frames: Sequence[int]) -> T:
        if frames[: len(self._done)] != self._done:
            self._done, self._value = frames[:0], self._start()
        for frame in frames[len(self._done) :]:
            self._value = self._add(self._value, frame)
        self._done = frames
        return self._value


class Tails:
    """The tails of one run: their identity, and their latents.

    Args:
        reference: identity of the latent at a timeline index.
        latent: the latent (C, h, w) at a timeline index.
    """

    def __init__(self, reference: Callable[[int], str], latent: Callable[[int], torch.Tensor]) -> None:
        self._latent = latent
        self._chain = Fold(str, lambda before, frame: hash_json([before, reference(frame)]))
        # Double precision, so that a sum over hours loses nothing that a latent holds.
        self._sum = Fold(lambda: torch.zeros(()), lambda total, frame: total + latent(frame).double())
        self._blocks: dict[Kernel, Fold[list[torch.Tensor]]] = {}

    def reference(self, frames: Sequence[int]) -> str:
        """Identity of the latents at ``frames``, far end first: equal when the bytes of all of them are."""
        return self._chain.over(frames)

    def mean(self, frames: Sequence[int]) -> torch.Tensor:
        """The mean latent (1, C, 1, h, w) of ``frames``, far end first, float32."""
        return (self._sum.over(frames) / len(frames)).float()[None, :, None]

    def pooled(self, frames: Sequence[int], pool: Kernel) -> torch.Tensor:
        """Latents (1, C, N, h', w') of ``frames``, far end first, each averaged by ``pool``."""
        assert pool[0] == 1, "a tail's frames are pooled one by one"

        def add(blocks: list[torch.Tensor], frame: int) -> list[torch.Tensor]:
            blocks.append(pooled(self._latent(frame)[None, :, None], pool))
            return blocks

        return torch.cat(self._blocks.setdefault(pool, Fold(list, add)).over(frames), dim=2)
