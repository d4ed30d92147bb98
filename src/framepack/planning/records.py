"""Schedules as plain JSON values, read back strictly: an unknown field is an error, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from framepack.errors import InputError, UnknownNameError
from framepack.packing.schedule import Level, PackingSchedule, Tail


def schedule_to_json(schedule: PackingSchedule) -> dict[str, object]:
    """Plain values that `schedule_from_json` reads."""
    return {
        "levels": _levels_to_json(schedule.levels),
        "tail": str(schedule.tail),
        "start": _levels_to_json(schedule.start),
        "end": _levels_to_json(schedule.end),
        "budget": schedule.budget,
    }


def _levels_to_json(levels: tuple[Level, ...]) -> list[dict[str, object]]:
    return [{"frames": level.frames, "kernel": list(level.kernel)} for level in levels]


def mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InputError(f"{what} record {value!r} must be a JSON object")
    return value


def known_fields(data: Mapping[str, object], names: set[str], what: str) -> dict[str, object]:
    for key in data:
        if key not in names:
            raise UnknownNameError(f"field of a {what} record", key, tuple(sorted(names)))
    return dict(data)


def _levels_from_json(value: object) -> tuple[Level, ...]:
    try:
        return tuple(Level(int(row["frames"]), tuple(map(int, row["kernel"]))) for row in value)  # type: ignore
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"levels {value!r} must be a list of frames and kernel: {error}") from None


def schedule_from_json(data: Mapping[str, object]) -> PackingSchedule:
    values = known_fields(data, {field.name for field in fields(PackingSchedule)}, "schedule")
    budget = values.get("budget")
    if budget is not None and not isinstance(budget, (int, float)):
        raise InputError(f"budget {budget!r} must be a number or null")
    tail = str(values.get("tail", "td"))
    if tail not in tuple(Tail):
        raise UnknownNameError("tail", tail, tuple(Tail))
    return PackingSchedule(
        levels=_levels_from_json(values.get("levels")),
        tail=Tail(tail),
        start=_levels_from_json(values.get("start", ())),
        end=_levels_from_json(values.get("end", ())),
        budget=None if budget is None else float(budget),
    )
