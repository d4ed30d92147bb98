"""The tokens of the paper's configuration strings (FramePack, section 5.1).

``f16k4`` is a level of 16 latent frames at kernel k4; ``k4`` is short for ``k4h8w8``, the kernel
(4, 8, 8). ``g9`` generates 9 latent frames, ``x`` skips any number of frames (also none), ``td``,
``ta`` and ``tc`` name the tail policy, ``+D`` says that history was discretised in training. Tokens may
be joined by one ``_`` or by nothing; their order is the order in time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from framepack.errors import NotationError

Kernel = tuple[int, int, int]

MAX_FRAMES = 4096
MAX_KERNEL = 256

_LEVEL = re.compile(r"f(\d+)k(\d+)(?:h(\d+)w(\d+))?")
_GENERATE = re.compile(r"g(\d+)")
_TAIL = re.compile(r"t[dac]")


@dataclass(frozen=True)
class Token:
    """One token: ``kind`` is level, generate, skip, tail or discretized; ``at`` its index in the text."""

    kind: str
    text: str
    at: int
    frames: int = 0
    kernel: Kernel = (0, 0, 0)


def _number(text: str, match: re.Match[str], group: int, what: str, limit: int) -> int:
    # Length first: int() of a very long run of digits raises an error of its own.
    digits = match[group].lstrip("0")
    if not digits or len(digits) > 9 or int(digits) > limit:
        raise NotationError(text, match.start(group), f"{what} must be 1 to {limit}")
    return int(digits)


def _token(text: str, at: int) -> tuple[Token, int]:
    if match := _LEVEL.match(text, at):
        frames = _number(text, match, 1, "frames of a level", MAX_FRAMES)
        time = _number(text, match, 2, "a kernel's size", MAX_KERNEL)
        if match[3] is None:
            kernel = (time, 2 * time, 2 * time)
        else:
            kernel = (
                time,
                _number(text, match, 3, "a kernel's size", MAX_KERNEL),
                _number(text, match, 4, "a kernel's size", MAX_KERNEL),
            )
        return Token("level", match[0], at, frames, kernel), match.end()
    if match := _GENERATE.match(text, at):
        frames = _number(text, match, 1, "frames to generate", MAX_FRAMES)
        return Token("generate", match[0], at, frames), match.end()
    if match := _TAIL.match(text, at):
        return Token("tail", match[0], at), match.end()
    if text.startswith("x", at):
        return Token("skip", "x", at), at + 1
    if text.startswith("+D", at):
        return Token("discretized", "+D", at), at + 2
    raise NotationError(
        text, at, "expected a level like f16k4 or f16k4h8w8, gN like g9, x, a tail td, ta or tc, or +D"
    )


def tokenize(text: str) -> list[Token]:
    """Split ``text`` into tokens.

    Raises:
        NotationError: at the first character that starts no token, or at a number out of range.
    """
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        if tokens and text[at] == "_":
            at += 1
        token, at = _token(text, at)
        tokens.append(token)
    if not tokens:
        raise NotationError(text, 0, "expected levels like td_f16k4f2k2f1k1")
    return tokens


def split_at_skips(tokens: list[Token], text: str) -> list[list[Token]]:
    """Groups of tokens between the ``x``. Raises NotationError where a group is empty."""
    groups: list[list[Token]] = [[]]
    for token in tokens:
        if token.kind != "skip":
            groups[-1].append(token)
            continue
        if not groups[-1]:
            raise NotationError(text, token.at, "x stands between two groups of frames")
        groups.append([])
    if not groups[-1]:
        raise NotationError(text, len(text), "expected frames after x")
    return groups


def only_levels(group: list[Token], text: str, where: str) -> list[Token]:
    """The group itself, when it holds nothing but levels. Raises NotationError at the first other token."""
    for token in group:
        if token.kind != "level":
            raise NotationError(text, token.at, f"only levels like f1k1 may stand {where}")
    return group


def far_to_near(group: list[Token], text: str, *, mirrored: bool) -> tuple[list[Token], str | None]:
    """Levels (far to near) and tail policy of one side's history.

    ``group`` is in order of time: ``tail levels`` for past history, ``levels tail`` when mirrored.

    Raises:
        NotationError: a tail that is not at the far end, or no level at all.
    """
    ordered = group[::-1] if mirrored else group
    tail = None
    if ordered and ordered[0].kind == "tail":
        tail, ordered = ordered[0].text, ordered[1:]
    for token in ordered:
        if token.kind == "tail":
            raise NotationError(text, token.at, "the tail stands once, at the far end of the history levels")
        if token.kind != "level":
            raise NotationError(text, token.at, "only history levels like f1k1 may stand here")
    if not ordered:
        at = group[-1].at + len(group[-1].text) if group else len(text)
        raise NotationError(text, at, "expected at least one history level like f1k1")
    return ordered, tail


def write_level(frames: int, kernel: Kernel) -> str:
    """``f16k4`` where the kernel is (N, 2N, 2N), else the long form ``f16k4h4w4``."""
    time, height, width = kernel
    short = f"f{frames}k{time}"
    return short if (height, width) == (2 * time, 2 * time) else f"{short}h{height}w{width}"
