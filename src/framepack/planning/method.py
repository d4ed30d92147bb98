"""A method: the frozen value that decides what a model sees, saved with every checkpoint and every run.

The paper's string (FramePack, section 5.1) writes its schedule, order and section size in order of time:
``td_f16k4f2k2f1k1_g9`` is vanilla, ``td_f16k4f2k2f1k1_g9_x_f1k1`` anti-drifting, and
``f1k1_x_g9_f1k1f2k2f16k4_td`` inverted. The rest stands beside the string, in the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from framepack.errors import InputError, NotationError, UnknownNameError
from framepack.packing import notation
from framepack.packing.notation import Kernel
from framepack.packing.schedule import HUNYUAN_BASE, Level, PackingSchedule, Tail, read_levels, released
from framepack.planning import records

ORDERS = ("vanilla", "f1", "anti-drifting", "inverted", "planned")
ABSENT = ("drop", "zeros")
POSITIONS = ("gap", "released", "constant")
HISTORY_TIMESTEPS = ("noisy", "zero")
IMPORTANCE_KINDS = ("time", "similarity", "hybrid")
MAX_POOL = 4096
_RARE = ("history_noise", "history_guidance")
"""Fields that records leave out at their defaults: runs and models from before there were these are found by
the hash of their records, and of ``repr``."""


def _choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UnknownNameError(what, str(value), choices)


def _integer(what: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{what} {value!r} must be a whole number from {low} to {high}")


def _number(what: str, value: object, high: float, rule: str) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (fits and 0 <= value <= high):  # type: ignore[operator]
        raise InputError(f"{what} {value!r} must be {rule}")


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How history frames are ranked before they are packed (FramePack, section 3.2).

    kind: ``time``, nearest first; ``similarity`` to an estimate of the next section; ``hybrid``, similarity
        + weight * time.
    weight: lambda_time of ``hybrid``.
    pool: nearest frames a ranker may choose from; as many older ones, evenly spaced, stand beside them.
    """

    kind: str = "time"
    weight: float = 1.0
    pool: int = 64

    def __post_init__(self) -> None:
        _choice("importance", self.kind, IMPORTANCE_KINDS)
        _integer("importance pool", self.pool, 1, MAX_POOL)
        _number("importance weight", self.weight, math.inf, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a model sees of a video while it makes a section of it.

    schedule: levels of context, tail policy, frames pinned to the start and across the gap.
    order: one of `ORDERS`.
    section_size: S, latent frames per section.
    absent: history that does not exist yet is dropped, or given as zeros with positions of its own.
    positions: ``gap``, true time indices with long gaps clamped; ``released``, the paddings of the released
        inverted loop; ``constant``, F1's indices, equal for every section.
    max_gap: under ``gap``, the most missing frames kept between two present ones; None keeps all.
    history_timestep: context frames share the timestep of the noisy ones, or have timestep 0.
    importance: how history frames are ranked.
    discretized: history is shown in few codewords (``+D``), see ``packing.discretisation``.
    history_noise: sigma of the noise that history is shown with, and told by its timestep, see
        ``packing.noising``; 0 shows it as it is.
    history_guidance: scale of guidance on the history, see ``sampling.section``; 1 is none.

    Raises:
        InputError: values that do not go together.
    """

    schedule: PackingSchedule
    order: str
    section_size: int
    absent: str = "drop"
    positions: str = "gap"
    max_gap: int | None = None
    history_timestep: str = "noisy"
    importance: Importance = Importance()
    discretized: bool = False
    history_noise: float = 0.0
    history_guidance: float = 1.0

    def __post_init__(self) -> None:
        _choice("order", self.order, ORDERS)
        _choice("absent history", self.absent, ABSENT)
        _choice("position rule", self.positions, POSITIONS)
        _choice("history timestep", self.history_timestep, HISTORY_TIMESTEPS)
        _integer("section size", self.section_size, 1, notation.MAX_FRAMES)
        if self.max_gap is not None:
            _integer("largest gap", self.max_gap, 0, 10**9)
        _number("history noise", self.history_noise, 1, "from 0 to 1")
        _number("history guidance", self.history_guidance, math.inf, "0 or more")
        if self.positions == "released" and self.order != "inverted":
            raise InputError(f"position rule 'released' is for order inverted, not {self.order}: use 'gap'")
        if self.positions == "constant" and self.order not in ("f1", "vanilla"):
            raise InputError(
                f"position rule 'constant' is for orders f1 and vanilla, not {self.order}: use 'gap'"
            )

    # Text ------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read the paper's string: ``[start _x_] ([tail] levels gN | gN levels [tail]) [_x_ end] [+D]``.

        The side of the levels gives the order: before gN forward (``f1`` with start levels, ``anti-drifting``
        with end levels, else ``vanilla``), after gN ``inverted``. What the string does not say is as in the
        friendly method of that order for base (1, 2, 2), except that absent history is dropped and that
        inverted positions are true gaps. Without a tail, history past the levels is deleted.

        Raises:
            NotationError: pointing at the spot.
        """
        tokens = notation.tokenize(text)
        discretized = tokens[-1].kind == "discretized"
        if discretized:
            tokens = tokens[:-1]
        for token in tokens:
            if token.kind == "discretized":
                raise NotationError(text, token.at, "+D stands once, at the end")
        generate = [token for token in tokens if token.kind == "generate"]
        if not generate:
            raise NotationError(text, len(text), "expected gN, the frames to generate, like g9")
        if len(generate) > 1:
            raise NotationError(text, generate[1].at, "gN stands once")
        groups = notation.split_at_skips(tokens, text)
        core = next(i for i, group in enumerate(groups) if generate[0] in group)
        if core > 1:
            raise NotationError(text, groups[1][0].at, "at most one group of frames before the history")
        if len(groups) > core + 2:
            raise NotationError(
                text, groups[core + 2][0].at, "at most one group of frames after the second x"
            )
        here = groups[core].index(generate[0])
        before, after = groups[core][:here], groups[core][here + 1 :]
        if before and after:
            raise NotationError(text, after[0].at, "history levels stand on one side of gN only")
        levels, tail = notation.far_to_near(before or after, text, mirrored=bool(after))
        start = notation.only_levels(groups[0] if core else [], text, "before x")
        end = notation.only_levels(groups[core + 1] if len(groups) > core + 1 else [], text, "after x")
        if after:
            order = "inverted"
        elif end:
            order = "anti-drifting"
        else:
            order = "f1" if start else "vanilla"
        return cls(
            schedule=PackingSchedule(
                read_levels(levels), Tail(tail or "td"), read_levels(start), read_levels(end)
            ),
            order=order,
            section_size=generate[0].frames,
            positions="constant" if order == "f1" else "gap",
            discretized=discretized,
        )

    def __str__(self) -> str:
        schedule = self.schedule
        near_to_far = self.order == "inverted"
        levels = schedule.levels[::-1] if near_to_far else schedule.levels
        words = "".join(map(str, levels))
        size = f"g{self.section_size}"
        core = f"{size}_{words}_{schedule.tail}" if near_to_far else f"{schedule.tail}_{words}_{size}"
        start = f"{''.join(map(str, schedule.start))}_x_" if schedule.start else ""
        end = f"_x_{''.join(map(str, schedule.end))}" if schedule.end else ""
        return start + core + end + ("+D" if self.discretized else "")

    def with_schedule(self, schedule: PackingSchedule) -> Method:
        """This method with other history; its own start and end levels stay where ``schedule`` names none."""
        kept = replace(
            schedule, start=schedule.start or self.schedule.start, end=schedule.end or self.schedule.end
        )
        return replace(self, schedule=kept)

    def __repr__(self) -> str:
        return f"Method({', '.join(f'{name}={value!r}' for name, value in self._told().items())})"

    def _told(self) -> dict[str, object]:
        """All fields but the rare ones at their defaults."""
        values = {field: getattr(self, field.name) for field in fields(self)}
        return {f.name: value for f, value in values.items() if f.name not in _RARE or value != f.default}

    # JSON ------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, object]:
        """A dict of plain values; ``notation`` is for people, the rest is what `from_json` reads."""
        return {
            "notation": str(self),
            "schedule": records.schedule_to_json(self.schedule),
            "order": self.order,
            "section_size": self.section_size,
            "absent": self.absent,
            "positions": self.positions,
            "max_gap": self.max_gap,
            "history_timestep": self.history_timestep,
            "importance": {
                "kind": self.importance.kind,
                "weight": self.importance.weight,
                "pool": self.importance.pool,
            },
            "discretized": self.discretized,
            **{name: value for name, value in self._told().items() if name in _RARE},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Method:
        """The method that `to_json` wrote. Fields left out keep their defaults.

        Raises:
            InputError: an unknown or ill-typed field, or values that do not go together.
        """
        values = records.known_fields(data, {"notation", *(field.name for field in fields(cls))}, "method")
        values.pop("notation", None)
        values["schedule"] = records.schedule_from_json(records.mapping(values.get("schedule"), "schedule"))
        if "importance" in values:
            importance = records.mapping(values["importance"], "importance")
            names = {field.name for field in fields(Importance)}
            values["importance"] = Importance(**records.known_fields(importance, names, "importance"))  # type: ignore[arg-type]
        try:
            return cls(**values)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(f"method record: {error}") from None


# Friendly names --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NamedMethod:
    """What a friendly name settles; kernels and section size are the model's.

    start, end: one frame at the base kernel pinned to the start of the video, or across the gap.
    zeros: absent history is given as zeros on base (1, 2, 2), where the released loops never drop it.
    """

    order: str
    start: bool = False
    end: bool = False
    positions: str = "gap"
    zeros: bool = False


METHODS: dict[str, NamedMethod] = {
    # forward in time: td_f16k4f2k2f1k1_g9
    "vanilla": NamedMethod(order="vanilla"),
    # FramePack-F1: forward, the first frame kept, the same indices for every section
    "f1": NamedMethod(order="f1", start=True, positions="constant", zeros=True),
    # first and last section together, then the gap: td_f16k4f2k2f1k1_g9_x_f1k1
    "anti-drifting": NamedMethod(order="anti-drifting", end=True),
    # last section first, back to the start frame, with the paddings of the released FramePackI2V_HY loop
    "inverted": NamedMethod(order="inverted", start=True, positions="released", zeros=True),
    # the same at true gaps: f1k1_x_g9_f1k1f2k2f16k4_td
    "inverted-plain": NamedMethod(order="inverted", start=True),
    # several endpoints, far ones first, then the gaps; written like anti-drifting
    "planned": NamedMethod(order="planned", end=True),
}


def named_method(
    name: str,
    base: Kernel = HUNYUAN_BASE,
    section_size: int = 9,
    *,
    absent: str | None = None,
    max_gap: int | None = None,
) -> Method:
    """One of `METHODS` for a base kernel and section size.

    Raises:
        UnknownNameError: no such name.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, tuple(METHODS))
    row, pinned = METHODS[name], (Level(1, base),)
    return Method(
        schedule=replace(released(base), start=pinned if row.start else (), end=pinned if row.end else ()),
        order=row.order,
        section_size=section_size,
        absent=absent or ("zeros" if row.zeros and base == HUNYUAN_BASE else "drop"),
        positions=row.positions,
        max_gap=max_gap,
    )


def method_from_spec(
    text: str,
    base: Kernel = HUNYUAN_BASE,
    section_size: int = 9,
    *,
    absent: str | None = None,
    max_gap: int | None = None,
) -> Method:
    """What a command line takes: a friendly name or the paper's string.

    Raises:
        UnknownNameError: neither a name nor anything like the notation.
        NotationError: notation that does not parse, pointing at the spot.
    """
    if text in METHODS:
        return named_method(text, base, section_size, absent=absent, max_gap=max_gap)
    if any(char.isdigit() for char in text):
        method = Method.parse(text)
        return replace(method, absent=absent or method.absent, max_gap=max_gap)
    raise UnknownNameError("method", text, (*METHODS, "notation like td_f16k4f2k2f1k1_g9"))
