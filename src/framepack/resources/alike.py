"""Tiles that are alike, counted once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from framepack.resources.tally import Tally


class Alike:
    """Has a VAE's networks run once for tiles of each kind; of others like it, no more than what is left of
    them is made, and what was counted is counted again. A picture has dozens of tiles, of four kinds.

    Args:
        counted: operations so far, of what really runs.
    """

    def __init__(self, tally: Tally, counted: Callable[[], int]) -> None:
        self._tally, self._counted = tally, counted
        self._known: dict[Any, tuple[int, int, Any, list[Any]]] = {}
        self._again = 0

    def operations(self) -> int:
        return self._counted() + self._again

    @contextlib.contextmanager
    def instead_of(self, vae: Any) -> Iterator[None]:
        """For the encoder and the decoder of a VAE; of None, nothing."""
        networks = [] if vae is None else [vae.encoder, vae.decoder]
        for network in networks:
            network.forward = partial(self._call, network, network.forward)
        try:
            yield
        finally:
            for network in networks:
                del network.forward

    def _call(
        self, network: Any, run: Callable[..., Any], x: torch.Tensor, feat_cache: Any = None, **named: Any
    ) -> Any:
        tally, kept = self._tally, [] if feat_cache is None else feat_cache
        others = {name: value for name, value in named.items() if name != "feat_idx"}
        key = (id(network), x.shape, str(others), str([_likeness(each) for each in kept]))
        if feat_cache is not None:
            named["feat_cache"] = feat_cache
        if key not in self._known:
            peak, live, operations = tally.peak, tally.live, self._counted()
            tally.rewind()
            made = run(x, **named)
            most, tally.peak = tally.peak - live, max(peak, tally.peak)
            left = [_likeness(each) for each in kept]
            self._known[key] = most, self._counted() - operations, _likeness(made), left
            return made
        most, operations, made, left = self._known[key]
        self._again += operations
        tally.peak = max(tally.peak, tally.live + most)
        for at, each in enumerate(left):
            kept[at] = None
            kept[at] = _alike(each)
        return _alike(made)


def _likeness(value: Any) -> Any:
    """What a tensor like it is made from; other values as they are."""
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value


def _alike(likeness: Any) -> Any:
    return torch.empty(likeness[0], dtype=likeness[1]) if isinstance(likeness, tuple) else likeness
