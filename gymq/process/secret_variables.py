"""The variables of the environment that hold secrets, and the processes that they reach: none but those that need them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

from gymq.observe.redaction import SECRET_ENDINGS
from gymq.settings import PREFIX

#: A URL with a password, as of Redis or another database; a proxy's passes, for all that a process asks goes through it.
_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]+@")

#: What every worker connects by.
SERVERS = (f"{PREFIX}REDIS_URL", f"{PREFIX}BROKER_URL")


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable holds a secret: its name says so, or it is a URL with a password.

    Args:
        name: its name.
        value: what it holds.
    """
    told = name.upper()
    return told.endswith(SECRET_ENDINGS) or (not told.endswith("_PROXY") and _PASSWORD.search(value) is not None)


def without_secrets(variables: Mapping[str, str], kept: Collection[str] = ()) -> dict[str, str]:
    """Return variables without those that hold secrets.

    Args:
        variables: the variables.
        kept: the names of those that stay.
    """
    return {name: value for name, value in variables.items() if name in kept or not is_secret(name, value)}


def forget_secrets(kept: Collection[str]) -> None:
    """Remove from this process's environment the secrets that it does not need, so that nothing that it starts has them.

    Args:
        kept: the names of those that stay, beside the addresses of the servers.
    """
    for name in os.environ.keys() - without_secrets(os.environ, {*kept, *SERVERS}).keys():
        del os.environ[name]
