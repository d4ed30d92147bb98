"""The noise levels of a section, by the rule that its model was released with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from framepack.errors import UnknownNameError
from framepack.sampling.flow import balanced_shift, make_sigmas
from framepack.sampling.helios import helios_sigmas


def flow_sigmas(steps: int, noisy_tokens: int, shift: float | None = None) -> torch.Tensor:
    """From 1 to 0, shifted by ``shift``, or by the balanced rule where it is None."""
    return make_sigmas(steps, balanced_shift(noisy_tokens) if shift is None else shift)


SIGMAS: dict[str, Callable[[int, int, float | None], torch.Tensor]] = {
    "flow": flow_sigmas,
    "helios": helios_sigmas,
}
"""(steps, noisy tokens, fixed shift or None) -> ``steps`` + 1 noise levels, float64, down to 0."""


def section_sigmas(
    steps: int,
    shift: float | None,
    target: Sequence[int],
    kernel: tuple[int, int, int],
    rule: str = "flow",
) -> torch.Tensor:
    """Noise levels for a target of latent size (T, h, w), in tokens of ``kernel``.

    Raises:
        UnknownNameError: no such rule.
    """
    if rule not in SIGMAS:
        raise UnknownNameError("sigmas", rule, list(SIGMAS))
    tokens = math.prod(-(-size // k) for size, k in zip(target, kernel, strict=True))
    return SIGMAS[rule](steps, tokens, shift)
