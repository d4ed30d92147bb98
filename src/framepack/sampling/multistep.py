"""diffusers' UniPC schedulers with their arithmetic on the CPU, so that no step waits for another device.

A step combines the sample that was corrected last, the data of the steps before and the new data. It is
linear in these: what it makes of each is read off by giving the scheduler unit vectors in their places.

Shapes: samples and data are (B, C, T, h, w), on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from framepack.sampling.solvers import Denoise


class Multistep:
    """The steps of one grid of noise levels, from its first.

    Args:
        scheduler: ``UniPCMultistepScheduler`` or ``HeliosScheduler``, which predicts data from flows. Its
            timesteps are set, and its ``sigmas``, on the CPU, end with 0.
    """

    def __init__(self, scheduler: Any) -> None:
        order = scheduler.config.solver_order
        self.levels: list[float] = scheduler.sigmas.tolist()
        self._scheduler, self._at = scheduler, 0
        self._units = torch.eye(order + 2, dtype=torch.float64)
        self._held: list[torch.Tensor | None] = [None] * (order + 1)

    def step(self, data: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """From x and the data that it was denoised to, to the sample at the next noise level."""
        at, self._at = self._at, self._at + 1
        if self.levels[at + 1] == 0:
            return data  # the last step is of order 1 and lands on the data, where bh1 divides 0 by 0
        scheduler, units = self._scheduler, self._units
        sample = torch.zeros_like(units[:1])
        if at == 0:
            sample, self._held[0] = units[:1], x
        scheduler.last_sample = units[:1] if at else None
        scheduler.model_outputs = [*units[1:-1].split(1)]
        flow = (sample - units[-1:]) / self.levels[at]
        following = scheduler.step(flow, None, sample, return_dict=False)[0]
        values = [*self._held, data]
        self._held = [_combined(scheduler.last_sample, values), *self._held[2:], data]
        return _combined(following, values)


def multistep(scheduler: Any, denoise: Denoise, x: torch.Tensor) -> torch.Tensor:
    """Solve with a scheduler, see `Multistep`."""
    steps = Multistep(scheduler)
    for i, sigma in enumerate(steps.levels[:-1]):
        x = steps.step(denoise(x, sigma, i), x)
    return x


def _combined(weights: torch.Tensor, values: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The sum of values by weight (1, n); those of weight 0 need not exist."""
    (row,) = weights.tolist()
    total = None
    for weight, value in zip(row, values, strict=True):
        if weight:
            assert value is not None
            total = value * weight if total is None else torch.add(total, value, alpha=weight)
    assert total is not None
    return total
