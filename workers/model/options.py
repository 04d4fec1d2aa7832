"""Checks of a backend's options: text where they come from a command line, values where they come from Python."""

from __future__ import annotations

import math

from gymq.errors import UsageError
from gymq.wire.json_types import JsonObject


def number(backend: str, options: JsonObject, name: str, default: float, *, smallest: float) -> float:
    """Return an option that is a number.

    Args:
        backend: the backend's name, for errors.
        options: the options by name; None: not given.
        name: the option's name.
        default: its value if it is not given.
        smallest: the smallest value.

    Raises:
        UsageError: it is no number, or too small.
    """
    value = options.get(name)
    if value is None:
        return default
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        parsed = math.nan
    if not smallest <= parsed < math.inf:
        raise UsageError(f"model {backend}: {name} is {value!r}; set it to a number from {smallest:g} up")
    return parsed


def flag(backend: str, options: JsonObject, name: str) -> bool:
    """Return an option that is true or false; not given: false.

    Args:
        backend: the backend's name, for errors.
        options: the options by name; None: not given.
        name: the option's name.

    Raises:
        UsageError: it is neither.
    """
    value = options.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if str(value).lower() not in ("true", "false", "1", "0"):
        raise UsageError(f"model {backend}: {name} is {value!r}; set it to true or false")
    return str(value).lower() in ("true", "1")
