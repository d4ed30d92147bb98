"""``--set a.b=c``: change one field of a configuration by its path."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from framepack.errors import InputError, UnknownNameError

T = TypeVar("T")


def override(config: T, setting: str) -> T:
    """A copy of a frozen dataclass with the field at a dotted path replaced.

    Args:
        setting: ``path=value``; the value is JSON, or else taken as text.

    Raises:
        InputError: no ``=``, or a value of another type. UnknownNameError: no such field.
    """
    path, equals, text = setting.partition("=")
    if not equals:
        raise InputError(f"setting '{setting}': write path=value, such as steps=100")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return _replace(config, path.split("."), value, setting)


def _replace(config: Any, path: list[str], value: Any, setting: str) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(config, dict):
        return config | {name: _replace(config.get(name), rest, value, setting) if rest else value}
    if not is_dataclass(config):
        raise InputError(f"setting '{setting}': '{name}' is below a plain value; shorten the path")
    names = [field.name for field in fields(config)]
    if name not in names:
        raise UnknownNameError("setting", name, names)
    held = getattr(config, name)
    if rest:
        value = _replace(held, rest, value, setting)
    elif isinstance(held, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif held is not None and type(value) is not type(held):
        raise InputError(f"setting '{setting}': {name} is {held!r}; give a value of that type")
    return replace(config, **{name: value})  # type: ignore[type-var]
