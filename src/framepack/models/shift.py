"""The flow shift of noise levels, as numbers: fixed, or balanced by how many tokens are noisy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from framepack.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Balanced flow matching: the fewer tokens are noisy, the less extreme the shift.

    The shift is e^mu, and mu linear in the noisy tokens. The defaults are the anchors of the released
    FramePack models; another base has its own.

    Args:
        low, high: (noisy tokens, mu) of two anchors.
        cap: the largest mu; None: there is none.

    Raises:
        InputError: anchors that are not two, that do not rise in tokens, or values that are not finite.
    """

    low: tuple[float, float] = (256, 0.5)
    high: tuple[float, float] = (4096, 1.15)
    cap: float | None = math.log(7.0)

    def __post_init__(self) -> None:
        values = (*self.low, *self.high, *(() if self.cap is None else (self.cap,)))
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        if not (numbers and all(map(math.isfinite, values)) and len(self.low) == len(self.high) == 2):
            raise InputError(f"anchors {self.low} and {self.high} must each be noisy tokens and mu")
        if not 0 <= self.low[0] < self.high[0]:
            raise InputError(f"anchors at {self.low[0]} and {self.high[0]} noisy tokens must rise from 0")

    def mu(self, noisy_tokens: int) -> float:
        slope = (self.high[1] - self.low[1]) / (self.high[0] - self.low[0])
        mu = self.low[1] + slope * (noisy_tokens - self.low[0])
        return mu if self.cap is None else min(mu, self.cap)


RELEASED = Balance()
UNCAPPED = Balance(cap=None)
"""Helios's: the same line, which it does not end."""
Shift = float | Balance


def shift_for(shift: Shift, noisy_tokens: int) -> float:
    """The factor for a number of noisy tokens, see `sampling.flow.shift_sigmas`."""
    return math.exp(shift.mu(noisy_tokens)) if isinstance(shift, Balance) else shift


def shift_to_json(shift: Shift) -> Any:
    """A number, or the anchors and the cap."""
    if not isinstance(shift, Balance):
        return shift
    return asdict(shift) | {"low": list(shift.low), "high": list(shift.high)}


def shift_from_json(data: Any) -> Shift:
    """What `shift_to_json` made. Raises InputError for what it can't have made."""
    if not isinstance(data, Mapping):
        return data
    if unknown := set(data) - {field.name for field in fields(Balance)}:
        raise InputError(f"a balanced shift has no {', '.join(sorted(unknown))}")
    try:
        return Balance(**{**data, "low": tuple(data["low"]), "high": tuple(data["high"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"a balanced shift of {dict(data)} lacks anchors") from error
