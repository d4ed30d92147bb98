"""``--set a.b=c``: change fields of a configuration by their paths."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from framepack.errors import InputError, UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True)
class _Change:
    path: tuple[str, ...]
    value: Any
    text: str

    def below(self) -> _Change:
        return replace(self, path=self.path[1:])


def override(config: T, *settings: str) -> T:
    """A copy of a frozen dataclass with the fields at dotted paths replaced, all at once.

    Args:
        settings: ``path=value`` each; the value is JSON, or else taken as text.

    Raises:
        InputError: no ``=``, a value of another type, or values that do not go together.
        UnknownNameError: no such field.
    """
    return _changed(config, [_parse(setting) for setting in settings])


def _parse(setting: str) -> _Change:
    path, equals, text = setting.partition("=")
    if not equals:
        raise InputError(f"setting '{setting}': write path=value, such as steps=100")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return _Change(tuple(path.split(".")), value, setting)


def _changed(held: Any, changes: Sequence[_Change], wanted: Any = Any) -> Any:
    """``held`` after changes at or below it; ``wanted`` is its declared type."""
    for change in changes:
        if not change.path:
            held = _typed(change, wanted)
    below: dict[str, list[_Change]] = {}
    for change in changes:
        if change.path:
            below.setdefault(change.path[0], []).append(change)
    if not below:
        return held
    if isinstance(held, dict):
        (kind,) = get_args(wanted)[1:] or (Any,)
        return held | {
            name: _changed(held.get(name), [c.below() for c in group], kind) for name, group in below.items()
        }
    if not is_dataclass(held) or isinstance(held, type):
        name, (change, *_) = next(iter(below.items()))
        raise InputError(f"setting '{change.text}': '{name}' is below a plain value; shorten the path")
    names = [field.name for field in fields(held)]
    hints = get_type_hints(type(held))
    values = {}
    for name, group in below.items():
        if name not in names:
            raise UnknownNameError("setting", name, names)
        values[name] = _changed(getattr(held, name), [c.below() for c in group], hints[name])
    return replace(held, **values)


def _typed(change: _Change, wanted: Any) -> Any:
    try:
        return _as(change.value, wanted)
    except TypeError:
        told = wanted.__name__ if isinstance(wanted, type) and not get_args(wanted) else wanted
        raise InputError(
            f"setting '{change.text}': '{change.value}' is not of type {told}; give one that is"
        ) from None


def _as(value: Any, wanted: Any) -> Any:
    """The value as a declared type; JSON has no tuples, and writes whole floats as integers."""
    if wanted is Any or (wanted is NoneType and value is None):
        return value
    if wanted is float and type(value) is int:
        return float(value)
    kinds = get_args(wanted)
    if isinstance(wanted, UnionType):
        for kind in kinds:
            with contextlib.suppress(TypeError):
                return _as(value, kind)
    elif get_origin(wanted) is tuple and isinstance(value, list):
        each = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(each) == len(value):
            return tuple(_as(part, kind) for part, kind in zip(value, each, strict=True))
    elif get_origin(wanted) is dict and isinstance(value, dict):
        return {name: _as(part, kinds[1]) for name, part in value.items()}
    elif is_dataclass(wanted) and isinstance(value, dict):
        return override(wanted(), *(f"{name}={json.dumps(part)}" for name, part in value.items()))  # type: ignore[operator]
    elif type(value) is wanted:
        return value
    raise TypeError(value)
