"""Checks of numbers in configurations, so that a bad one is told by name before any work begins."""

from __future__ import annotations

import math
from collections.abc import Callable

from framepack.errors import InputError

COUNT = "a whole number of 1 or more"
AMOUNT = "0 or more"
POSITIVE = "above 0"
SHARE = "from 0 to 1"

_RULES: dict[str, Callable[[float], bool]] = {
    COUNT: lambda value: isinstance(value, int) and value >= 1,
    AMOUNT: lambda value: 0 <= value < math.inf,
    POSITIVE: lambda value: 0 < value < math.inf,
    SHARE: lambda value: 0 <= value <= 1,
}


def check(config: object, rule: str, *names: str) -> None:
    """Hold fields of a configuration to one of the rules above.

    Raises:
        InputError: naming the field, its value and the rule.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _RULES[rule](value):
            raise InputError(f"{name} {value!r} must be {rule}: change it")
