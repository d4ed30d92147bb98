"""Packing schedules: how many latent frames of history are seen at which patchify kernel.

A schedule bounds the number of context tokens whatever the length of the video (FramePack, section 3.1):
history frame i, counted back from the section being made, gets about L_f / lambda^i tokens, L_f being the
tokens of one latent frame at the base kernel. The sum for endless history is L_f * lambda / (lambda - 1).

Pure arithmetic: no tensors here. ``grid`` is always (height, width) of one latent frame.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from framepack.errors import InputError, NotationError, UnknownNameError
from framepack.packing import notation, rates
from framepack.packing.notation import Kernel, Token
from framepack.packing.rates import rate_kernel, scaled

Grid = tuple[int, int]

HUNYUAN_BASE: Kernel = (1, 2, 2)
# What an appended tail frame is average-pooled by before the farthest kernel (FramePack, section 3.1).
TAIL_POOL: Kernel = (1, 32, 32)


def check_grid(grid: Grid) -> Grid:
    """Raises InputError unless ``grid`` is two positive sizes."""
    if len(grid) != 2 or min(grid) < 1:
        raise InputError(f"latent grid {grid} must be two sizes of at least 1")
    return grid


def _tokens(frames: int, grid: Grid, kernel: Kernel) -> int:
    # Replicate padding completes the last patch in every direction, hence the ceilings.
    time, height, width = kernel
    return -(-frames // time) * -(-grid[0] // height) * -(-grid[1] // width)


def context_tensor_tokens(frames: int, grid: Grid, kernel: Kernel, pool: Kernel | None = None) -> int:
    """Tokens, padding included, of ``frames`` latent frames pooled by ``pool``, then cut by ``kernel``."""
    if frames == 0:
        return 0
    if pool is not None:
        frames, grid = -(-frames // pool[0]), (-(-grid[0] // pool[1]), -(-grid[1] // pool[2]))
    return _tokens(frames, grid, kernel)


class Tail(StrEnum):
    """What becomes of history past the last level: deleted, appended pooled, or compressed to one mean."""

    DELETE = "td"
    APPEND = "ta"
    COMPRESS = "tc"


@dataclass(frozen=True)
class Level:
    """``frames`` latent frames patchified by one ``kernel`` (p_t, p_h, p_w)."""

    frames: int
    kernel: Kernel

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= notation.MAX_FRAMES:
            raise InputError(f"a level of {self.frames} frames must have 1 to {notation.MAX_FRAMES}")
        if len(self.kernel) != 3 or not all(1 <= size <= notation.MAX_KERNEL for size in self.kernel):
            raise InputError(f"kernel {self.kernel} must be three sizes of 1 to {notation.MAX_KERNEL}")

    @property
    def volume(self) -> int:
        """Latent pixels that one token stands for."""
        return math.prod(self.kernel)

    def tokens(self, grid: Grid, frames: int | None = None) -> int:
        """Tokens of this level holding ``frames`` of its frames (all of them by default)."""
        return _tokens(self.frames if frames is None else frames, check_grid(grid), self.kernel)

    def __str__(self) -> str:
        return notation.write_level(self.frames, self.kernel)


def read_levels(tokens: Sequence[Token]) -> tuple[Level, ...]:
    return tuple(Level(token.frames, token.kernel) for token in tokens)


def _write_levels(levels: Sequence[Level]) -> str:
    return "".join(map(str, levels))


@dataclass(frozen=True)
class PackingSchedule:
    """The context of a section, by level.

    levels: history adjacent to the section being made, far to near.
    tail: what becomes of history past the levels.
    start: levels pinned to the first frames of the video, in order of time.
    end: levels pinned to the next known frames across the gap, in order of time.
    budget: closed-form history budget in units of L_f, when built from a lambda or a budget.
    """

    levels: tuple[Level, ...]
    tail: Tail = Tail.DELETE
    start: tuple[Level, ...] = ()
    end: tuple[Level, ...] = ()
    budget: float | None = None

    def __post_init__(self) -> None:
        if not self.levels:
            raise InputError("a schedule without history levels: give at least one, like f1k1")

    # Text ------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str) -> PackingSchedule:
        """Read the paper's notation: ``[start _x_] td_f16k4f2k2f1k1 [_x_ end]``.

        Levels written near to far before their tail (``f1k1f2k2f16k4_td``) are taken as mirrored.

        Raises:
            NotationError: pointing at the spot.
        """
        tokens = notation.tokenize(text)
        for token in tokens:
            if token.kind == "generate":
                raise NotationError(text, token.at, "a schedule has no gN: give the whole string as a method")
            if token.kind == "discretized":
                raise NotationError(text, token.at, "a schedule has no +D: give the whole string as a method")
        groups = notation.split_at_skips(tokens, text)
        tailed = [i for i, group in enumerate(groups) if any(token.kind == "tail" for token in group)]
        if len(groups) > 1 and not tailed:
            raise NotationError(text, len(text), "with an x, mark the history levels by a tail td, ta or tc")
        core = tailed[0] if tailed else 0
        if len(groups) > core + 2:
            raise NotationError(text, groups[core + 2][0].at, "at most one group of frames after the history")
        if core > 1:
            raise NotationError(text, groups[1][0].at, "at most one group of frames before the history")
        mirrored = groups[core][-1].kind == "tail"
        levels, tail = notation.far_to_near(groups[core], text, mirrored=mirrored)
        before = groups[0] if core else []
        after = groups[core + 1] if len(groups) > core + 1 else []
        return cls(
            levels=read_levels(levels),
            tail=Tail(tail or "td"),
            start=read_levels(notation.only_levels(before, text, "before x")),
            end=read_levels(notation.only_levels(after, text, "after the second x")),
        )

    def __str__(self) -> str:
        core = f"{self.tail}_{_write_levels(self.levels)}"
        start = f"{_write_levels(self.start)}_x_" if self.start else ""
        end = f"_x_{_write_levels(self.end)}" if self.end else ""
        return start + core + end

    # Tokens ----------------------------------------------------------------------------------------

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel of every level, each once."""
        return tuple(dict.fromkeys(level.kernel for level in (*self.start, *self.levels, *self.end)))

    @property
    def history_frames(self) -> int:
        """Frames of history that the levels hold."""
        return sum(level.frames for level in self.levels)

    @property
    def start_frames(self) -> int:
        return sum(level.frames for level in self.start)

    @property
    def end_frames(self) -> int:
        return sum(level.frames for level in self.end)

    @property
    def base(self) -> Kernel:
        """The finest kernel in use, taken as the base kernel when none is given."""
        return min((*self.levels, *self.start, *self.end), key=lambda level: level.volume).kernel

    def context_tokens(self, grid: Grid, frames: int | None = None) -> int | None:
        """Exact tokens, padding included, of ``frames`` latent frames of history (None: endless).

        The start and end frames are counted on their own (`start_tokens`, `end_tokens`). None for endless
        history with an appended tail, which has no bound.
        """
        check_grid(grid)
        if frames is None:
            if self.tail is Tail.APPEND:
                return None
            frames = self.history_frames + 1
        total = 0
        for level in reversed(self.levels):
            present = min(level.frames, frames)
            total += level.tokens(grid, present)
            frames -= present
        far = self.levels[0].kernel
        if frames and self.tail is Tail.APPEND:
            total += context_tensor_tokens(frames, grid, far, TAIL_POOL)
        elif frames and self.tail is Tail.COMPRESS:
            total += context_tensor_tokens(1, grid, far)
        return total

    def limit_tokens(self, grid: Grid) -> int | None:
        """The exact bound of `context_tokens` over every history length; None for ``ta``, which has none."""
        return self.context_tokens(grid)

    def start_tokens(self, grid: Grid) -> int:
        """Tokens of the frames pinned to the start of the video."""
        return sum(level.tokens(grid) for level in self.start)

    def end_tokens(self, grid: Grid) -> int:
        """Tokens of the frames pinned across the gap."""
        return sum(level.tokens(grid) for level in self.end)

    def nominal_limit(self, frame_tokens: int, base: Kernel | None = None) -> float | None:
        """The closed form of the history budget in tokens, start frame and padding not counted.

        For lambda this is L_f * lambda / (lambda - 1) (FramePack, equation 3): 3,120 for lambda 2 at
        ``frame_tokens`` L_f = 1,560. Schedules given by their levels add up frames by kernel volume
        relative to ``base``. None for ``ta``, whose sum does not converge.
        """
        if self.tail is Tail.APPEND:
            return None
        return frame_tokens * (self.rate(base) if self.budget is None else self.budget)

    def rate(self, base: Kernel | None = None) -> float:
        """History frames in units of L_f, by kernel volume: the sum that the levels and ``tc`` realise."""
        unit = math.prod(base or self.base)
        total = sum(level.frames * unit / level.volume for level in self.levels)
        if self.tail is Tail.COMPRESS:
            total += unit / self.levels[0].volume
        return total

    # Builders --------------------------------------------------------------------------------------

    @classmethod
    def from_lambda(cls, lam: float, base: Kernel = HUNYUAN_BASE) -> PackingSchedule:
        """Frame i at rate 1/lam^i, rounded down to a power of two so that the limit holds.

        Older frames share the last kernel (``tc``) where the budget has room for it, else they are deleted.

        Raises:
            InputError: lam not above 1, above 1,024, or so near 1 that the budget passes 64 frames.
        """
        return _from_exponents(rates.exponents_of_lambda(lam), rates.budget_of_lambda(lam), base)

    @classmethod
    def from_budget(cls, budget: float, base: Kernel = HUNYUAN_BASE) -> PackingSchedule:
        """Any history budget in units of L_f, by its binary digits (FramePack, section 3.1).

        From 2 up: the terms 1, 1/2, ... 1/16, of which the digits of ``budget - 2`` duplicate some (2.625
        = 2 + 0.101b duplicates 1/2 and 1/8; whole units repeat the term 1). Below 2: only the terms whose
        digit is one (4/3 = 1.0101...b keeps 1, 1/4, 1/16, 1/64, 1/256). Digits finer than the last term
        are dropped, so the budget is never passed.

        Raises:
            InputError: a budget below 1 or above 64.
        """
        return _from_exponents(rates.exponents_of_budget(budget), budget, base)

    @classmethod
    def named(cls, name: str, base: Kernel = HUNYUAN_BASE) -> PackingSchedule:
        """One of `SCHEDULES` for a base kernel. Raises UnknownNameError."""
        if name not in SCHEDULES:
            raise UnknownNameError("schedule", name, tuple(SCHEDULES))
        return SCHEDULES[name](base)

    @classmethod
    def from_spec(cls, text: str, base: Kernel = HUNYUAN_BASE) -> PackingSchedule:
        """What a command line takes: a name, ``lambda=X``, ``budget=X``, or the notation.

        Raises:
            UnknownNameError: neither a name nor anything like the notation.
            NotationError: notation that does not parse.
            InputError: a lambda or budget that makes no sense.
        """
        key, equals, value = text.partition("=")
        if equals:
            builders = {"lambda": cls.from_lambda, "budget": cls.from_budget}
            if key not in builders:
                raise UnknownNameError("schedule rule", key, tuple(f"{name}=X" for name in builders))
            try:
                number = float(value)
            except ValueError:
                raise InputError(f"{key}={value}: give a number, like {key}=2") from None
            return builders[key](number, base)
        if text in SCHEDULES:
            return SCHEDULES[text](base)
        if text[:2] in ("td", "ta", "tc") or any(char.isdigit() for char in text):
            return cls.parse(text)
        raise UnknownNameError(
            "schedule", text, (*SCHEDULES, "lambda=X", "budget=X", "notation like td_f16k4f2k2f1k1")
        )


def _from_exponents(exponents: Sequence[int], budget: float, base: Kernel) -> PackingSchedule:
    """Levels for frames of rates 1/2^e, newest first; equal rates form one level."""
    counts = Counter(exponents)
    levels = tuple(Level(counts[e], rate_kernel(e, base)) for e in sorted(counts, reverse=True))
    used = sum(2.0**-e for e in exponents)
    room = budget - used >= 2.0 ** -max(exponents) - 1e-9
    return PackingSchedule(levels, Tail.COMPRESS if room else Tail.DELETE, budget=budget)


def released(base: Kernel) -> PackingSchedule:
    """f16k4 f2k2 f1k1, the history levels of the released FramePack and Helios weights."""
    return PackingSchedule((Level(16, scaled(base, 4)), Level(2, scaled(base, 2)), Level(1, base)))


def unpacked(frames: int, base: Kernel) -> PackingSchedule:
    """The nearest ``frames`` latent frames of history, each at the base kernel, and nothing of older ones.

    Full history of a video that is no longer than that, a sliding window over one that is.

    Raises:
        InputError: no frames.
    """
    if frames < 1:
        raise InputError(f"history of {frames} latent frames: give at least 1")
    whole, left = divmod(frames, notation.MAX_FRAMES)
    sizes = [*([left] if left else []), *[notation.MAX_FRAMES] * whole]
    return PackingSchedule(tuple(Level(size, base) for size in sizes))


def _geometric(base: Kernel) -> PackingSchedule:
    """1, 1/2, 1/4, 1/8, 1/16, older frames sharing the last term: 2 L_f."""
    return PackingSchedule.from_lambda(2.0, base)


def _duplicated(base: Kernel) -> PackingSchedule:
    """1, three at 1/4, three at 1/16, older frames sharing one more: 2 L_f."""
    levels = (Level(3, rate_kernel(4, base)), Level(3, rate_kernel(2, base)), Level(1, base))
    return PackingSchedule(levels, Tail.COMPRESS, budget=2.0)


def _start_frame(base: Kernel) -> PackingSchedule:
    """Geometric, with the first frame of the video always at the base kernel."""
    return replace(_geometric(base), start=(Level(1, base),))


def _symmetric(base: Kernel) -> PackingSchedule:
    """Geometric from both ends: the first frames of the video count as much as the last."""
    geometric = _geometric(base)
    return replace(geometric, start=tuple(reversed(geometric.levels)))


SCHEDULES: dict[str, Callable[[Kernel], PackingSchedule]] = {
    "geometric": _geometric,
    "duplicated": _duplicated,
    "temporal": released,
    "start-frame": _start_frame,
    "symmetric": _symmetric,
    "kernel-row": _geometric,  # the row (1,2,2) (1,4,2) (1,4,4) (1,8,4) (1,8,8) is what lambda 2 comes to
}
