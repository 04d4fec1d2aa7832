"""Reading the options of a backend: from a command line they are text, from Python what they are."""

from __future__ import annotations

import math
from typing import Any

from gymq.errors import UsageError


def number(backend: str, options: dict[str, Any], name: str, default: float, *, smallest: float) -> float:
    """Read a number.

    Args:
        backend: the backend's name, for errors.
        options: by name, None where not given.
        name: the option's name.
        default: if it is not given.
        smallest: what it is at least.

    Raises:
        UsageError: it is none, or too small.
    """
    value = options.get(name)
    if value is None:
        return default
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not smallest <= found < math.inf:
        raise UsageError(f"model {backend}: {name} is {value!r}; it is a number from {smallest:g} up")
    return found


def flag(backend: str, options: dict[str, Any], name: str) -> bool:
    """Read a yes or no; not given is no.

    Args:
        backend: the backend's name, for errors.
        options: by name, None where not given.
        name: the option's name.

    Raises:
        UsageError: it is neither.
    """
    value = options.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if str(value).lower() not in ("true", "false", "1", "0"):
        raise UsageError(f"model {backend}: {name} is {value!r}; it is true or false")
    return str(value).lower() in ("true", "1")
