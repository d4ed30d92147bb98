"""The tokens of the paper's configuration strings (FramePack, section 5.1).

``f16k4`` is a level of 16 latent frames at kernel k4; ``k4`` is short for ``k4h8w8``, the kernel
(4, 8, 8). ``g9`` generates 9 latent frames, ``x`` skips any number of frames (also none), ``td``,
``ta`` and ``tc`` name the tail policy, ``+D`` says that history is discretised. Tokens may
be joined by one ``_`` or by nothing; their order is the order in time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from framepack.errors import NotationError

Kernel = tuple[int, int, int]

MAX_FRAMES = 4096
MAX_KERNEL = 256

_DIGITS = re.compile(r"[0-9]*")


@dataclass(frozen=True)
class Token:
    """One token: ``kind`` is level, generate, skip, tail or discretized; ``at`` its index in the text."""

    kind: str
    text: str
    at: int
    frames: int = 0
    kernel: Kernel = (0, 0, 0)


def _number(text: str, at: int, what: str, limit: int) -> tuple[int, int]:
    """The number at ``at`` and the index after it."""
    match = _DIGITS.match(text, at)
    digits = match[0] if match else ""
    if not digits:
        raise NotationError(text, at, f"expected a number, {what}")
    # Length first: int() of a very long run of digits raises an error of its own.
    value = digits.lstrip("0")
    if not value or len(value) > len(str(limit)) or int(value) > limit:
        raise NotationError(text, at, f"{what} must be 1 to {limit}")
    return int(value), at + len(digits)


def _letter(text: str, at: int, letter: str) -> int:
    """The index after ``letter``, which must stand at ``at``."""
    if not text.startswith(letter, at):
        raise NotationError(text, at, f"expected {letter}, as in f16k4 or f16k4h8w8")
    return at + 1


def _level(text: str, start: int) -> tuple[Token, int]:
    frames, at = _number(text, start + 1, "frames of a level", MAX_FRAMES)
    size = _letter(text, at, "k")
    time, at = _number(text, size, "a kernel's size in time", MAX_KERNEL)
    height = width = 2 * time
    if not text.startswith("h", at):
        if height > MAX_KERNEL:
            raise NotationError(text, size, f"kN, short for kNh2Nw2N, must be 1 to {MAX_KERNEL // 2}")
    else:
        height, at = _number(text, at + 1, "a kernel's height", MAX_KERNEL)
        width, at = _number(text, _letter(text, at, "w"), "a kernel's width", MAX_KERNEL)
    return Token("level", text[start:at], start, frames, (time, height, width)), at


def _token(text: str, at: int) -> tuple[Token, int]:
    if text.startswith("f", at):
        return _level(text, at)
    if text.startswith("g", at):
        frames, end = _number(text, at + 1, "frames to generate", MAX_FRAMES)
        return Token("generate", text[at:end], at, frames), end
    for kind, words in (("tail", ("td", "ta", "tc")), ("skip", ("x",)), ("discretized", ("+D",))):
        for word in words:
            if text.startswith(word, at):
                return Token(kind, word, at), at + len(word)
    raise NotationError(text, at, "expected a level like f16k4, gN like g9, x, a tail td, ta or tc, or +D")


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
