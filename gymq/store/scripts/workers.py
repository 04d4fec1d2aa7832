"""Scripts of the worker registry."""

from __future__ import annotations

from gymq.store.scripts.script import ScriptCall


def register_worker(worker: str, info: bytes, ttl: int, open_for: bytes) -> ScriptCall[None]:
    """Enter a worker into the registry, with a private mailbox if it wants one; a second call changes nothing.

    Args:
        worker: the worker's name.
        info: JSON of what the worker is.
        ttl: ms after which the worker's key lapses.
        open_for: JSON list of what is sent to the private mailbox; empty: none.
    """
    return ScriptCall("register_worker", (worker, info, ttl, open_for), lambda reply: None)


def update_worker(worker: str, info: bytes) -> ScriptCall[bool]:
    """Replace what the registry says of a worker; False: it was declared dead.

    Args:
        worker: the worker's name.
        info: JSON of what the worker is.
    """
    return ScriptCall("update_worker", (worker, info), bool)


def renew_worker(worker: str, ttl: int, private: bool) -> ScriptCall[bool]:
    """Renew a worker's key that has lapsed; False: it was declared dead, and its mail belongs to others.

    Args:
        worker: the worker's name.
        ttl: ms after which the key lapses again.
        private: True: the worker cannot go on without its private mailbox.
    """
    return ScriptCall("renew_worker", (worker, ttl, int(private)), bool)
