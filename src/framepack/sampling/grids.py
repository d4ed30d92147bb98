"""The noise levels of a section, by the rule that its model was released with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from framepack.errors import UnknownNameError
from framepack.models.shift import Shift, shift_for
from framepack.sampling.flow import make_sigmas
from framepack.sampling.helios import helios_sigmas


def flow_sigmas(steps: int, tokens: int, shift: Shift) -> torch.Tensor:
    """From 1 to 0, and then shifted."""
    return make_sigmas(steps, shift_for(shift, tokens))


SIGMAS: dict[str, Callable[[int, int, Shift], torch.Tensor]] = {
    "flow": flow_sigmas,
    "helios": helios_sigmas,
}
"""(steps, noisy tokens, shift) -> ``steps`` + 1 noise levels, float64, down to 0."""


def noisy_tokens(target: Sequence[int], kernel: tuple[int, int, int]) -> int:
    """Tokens of ``kernel`` in a target of latent size (T, h, w)."""
    return math.prod(-(-size // k) for size, k in zip(target, kernel, strict=True))


def section_sigmas(
    steps: int,
    shift: Shift,
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
    return SIGMAS[rule](steps, noisy_tokens(target, kernel), shift)
