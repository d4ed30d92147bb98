"""Rates of history frames as powers of two: which exponents realise a lambda or a budget.

A frame of exponent e gets L_f / 2^e tokens. An exponent's kernel is the base kernel with 2^e times its
volume: (1,2,2) (1,4,2) (1,4,4) (1,8,4) (1,8,8) for exponents 0 to 4 of base (1, 2, 2).
"""

from __future__ import annotations

import math

from framepack.errors import InputError
from framepack.packing.notation import Kernel

TERMS = 5
# Rates below 1/2^8 of a frame are not worth a level of their own.
FINEST_DIGIT = 8
MAX_BUDGET = 64.0
MAX_LAMBDA = 1024.0


def rate_kernel(exponent: int, base: Kernel) -> Kernel:
    """The kernel of rate 1/2^exponent: ``base`` doubled in height, then width, in turn."""
    time, height, width = base
    return (time, height * 2 ** ((exponent + 1) // 2), width * 2 ** (exponent // 2))


def scaled(base: Kernel, factor: int) -> Kernel:
    """``base`` times ``factor`` in every direction: (1,2,2) by 4 is (4,8,8), the paper's k4."""
    time, height, width = base
    return (time * factor, height * factor, width * factor)


def budget_of_lambda(lam: float) -> float:
    """lambda / (lambda - 1), the limit of the sum of 1/lambda^i (FramePack, equation 3).

    Raises:
        InputError: lam not above 1, above 1,024, or so near 1 that the budget passes 64 frames.
    """
    if not (math.isfinite(lam) and 1 < lam <= MAX_LAMBDA):
        raise InputError(f"lambda {lam:g} must be above 1 and at most {MAX_LAMBDA:g}: try 2")
    budget = lam / (lam - 1)
    if budget > MAX_BUDGET:
        raise InputError(f"lambda {lam:g} needs over {MAX_BUDGET:g} frames of history: try 2")
    return budget


def exponents_of_lambda(lam: float) -> list[int]:
    """Exponents of the newest frame, the one before, and so on, at rates at most 1/lam^i.

    Five terms; more for a small lam, until the rest is at most a sixteenth of a frame.
    """
    budget = budget_of_lambda(lam)
    exponents: list[int] = []
    while len(exponents) < TERMS or budget * lam ** -len(exponents) > 1 / 16 + 1e-9:
        exponent = math.ceil(len(exponents) * math.log2(lam) - 1e-9)
        if exponent > FINEST_DIGIT and exponents:
            break
        exponents.append(exponent)
    return exponents


def exponents_of_budget(budget: float) -> list[int]:
    """Exponents by the binary digits of ``budget`` (FramePack, section 3.1), in ascending order.

    Raises:
        InputError: a budget below 1 or above 64.
    """
    if not (math.isfinite(budget) and 1 <= budget <= MAX_BUDGET):
        raise InputError(f"budget {budget:g} must be 1 to {MAX_BUDGET:g} frames: try 2")
    if budget < 2:
        return [0, *(place for place in range(1, FINEST_DIGIT + 1) if _digit(budget, place))][:TERMS]
    repeated = [place for place in range(1, TERMS) if _digit(budget, place)]
    return sorted([0] * (int(budget) - 1) + list(range(1, TERMS)) + repeated)


def _digit(budget: float, place: int) -> bool:
    """Whether the binary digit of value 2^-place is set."""
    return math.floor(budget * 2**place) % 2 == 1
