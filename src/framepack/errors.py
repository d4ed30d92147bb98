"""The errors a user can see.

Every message names the value, the rule it breaks and the remedy, on one line. The command line
prints it and ends with exit code 2; programming mistakes stay ``assert`` and ``TypeError``.
"""

from __future__ import annotations

from difflib import get_close_matches

SHOWN = 60
"""Characters of a long text shown on each side of a fault."""


def first_line(error: BaseException) -> str:
    """What another program's error says, cut to its first line that says anything; else its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class FramePackError(Exception):
    """Root of all errors raised on purpose by framepack."""


class InputError(FramePackError, ValueError):
    """A value given by the user that cannot be used."""


class NotationError(InputError):
    """A schedule, a method or a prompt by time that does not parse.

    Args:
        text: the string as given.
        at: index into ``text`` where parsing stopped; ``len(text)`` for an early end.
        rule: what was expected there.
    """

    def __init__(self, text: str, at: int, rule: str) -> None:
        self.text, self.at, self.rule = text, at, rule
        before = text[:at] if at <= SHOWN else f"...{text[at - SHOWN : at]}"
        after = text[at:] if len(text) <= at + SHOWN else f"{text[at : at + SHOWN]}..."
        super().__init__(f"'{before}>>>{after}' does not parse at character {at + 1}: {rule}")


class UnknownNameError(InputError):
    """A name that is not in a table; the message lists the choices, and says which is nearest."""

    def __init__(self, what: str, name: str, choices: list[str] | tuple[str, ...]) -> None:
        self.name, self.choices = name, tuple(choices)
        near = get_close_matches(name, choices, 1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        super().__init__(f"unknown {what} '{name}': choose one of {', '.join(choices)}{nearest}")


class UntrainedMethodError(InputError):
    """A method that the checkpoint was not trained for."""


class ModelError(FramePackError):
    """Weights or a model folder that cannot be loaded."""


class OutOfMemoryError(FramePackError, MemoryError):
    """Memory that ran out in the middle of something; what is finished is kept."""


class LostProcessError(FramePackError):
    """A process that a run was shared with, and that ended before it; what is finished is kept."""


class OutputError(FramePackError, OSError):
    """A place that cannot be written, or that holds something of somebody else's."""


class RunConflictError(OutputError):
    """A work folder that belongs to another configuration."""


def ran_out(error: BaseException) -> bool:
    """Whether an allocator of any device refused: on CPUs PyTorch has no class of error for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, by its name
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in told or "out of memory" in told)
