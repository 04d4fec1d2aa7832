"""The identity of a run, which is all that a rollout's outcome depends on; its name; and what two of them differ in."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

#: Characters of the environment's name with which a run's name begins.
_NAME_LENGTH = 60

#: Words for the members of an identity that are no options of that name.
_NAMES = {"environment": "ENV", "prompt": "--prompt-config"}


def run_name(identity: dict[str, Any]) -> str:
    """Return the name of a run: the environment's, and a digest of the identity.

    Args:
        identity: as `RunOptions.identity` returns it.
    """
    digest = hashlib.blake2b(msgspec.json.encode(identity, order="sorted"), digest_size=5).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', identity['environment'])[:_NAME_LENGTH].lstrip('-_') or 'run'}-{digest}"


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line on each option in which two identities differ: `option: was → is`.

    Args:
        was: one; what it does not have is not compared.
        now: the other.
    """
    lines: list[str] = []
    for name, value in now.items():
        old = was.get(name, value)
        option = _NAMES.get(name, f"--{name.replace('_', '-')}")
        if old == value:
            continue
        if name == "data":
            lines.append(f"{option}: the rows are others")
        elif isinstance(old, dict) and isinstance(value, dict):
            changed = [key for key in sorted({*old, *value}) if old.get(key) != value.get(key)]
            lines += [f"{option} {key}: {_shown(old.get(key))} → {_shown(value.get(key))}" for key in changed]
        else:
            lines.append(f"{option}: {_shown(old)} → {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    """Return a value as the command line has it."""
    if value is None or value == "":
        return "not given"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
