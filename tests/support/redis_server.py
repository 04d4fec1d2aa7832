"""What tests need of a server: find keys that would stay for ever, and wait for something to become true."""

from __future__ import annotations

import time
from collections.abc import Callable
from fnmatch import fnmatchcase

import psutil
from redis import Redis

from tests.support.shard import keys

#: Keys that may stay without a TTL: registries, and the queue bindings that kombu keeps.
LASTING = (keys.workers, keys.runs, keys.paused, "_kombu.binding*")

#: Mailboxes stay, with their consumer group, but what was in them is acknowledged and deleted.
MAILBOXES = (keys.mailbox("*"),)


def wait_until(condition: Callable[[], object], limit: float = 10.0, what: str = "") -> None:
    """Wait until a condition is true.

    Raises:
        AssertionError: it is not within `limit` seconds.
    """
    until = time.monotonic() + limit
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit:g} s: {what or condition}")
        time.sleep(0.02)


def running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def leaked_keys(client: Redis, lasting: tuple[str, ...] = ()) -> list[str]:
    """The keys that have no TTL and are not known to stay, each with its type; `lasting` are patterns of further ones."""
    leaks: list[str] = []
    for raw in client.scan_iter(count=1000):
        key = raw.decode(errors="replace")
        # -1: has no TTL. -2: is gone by now.
        if client.ttl(raw) != -1 or any(_matches(key, pattern) for pattern in (*LASTING, *lasting)):
            continue
        kind = client.type(raw).decode()
        if kind == "stream" and any(_matches(key, pattern) for pattern in MAILBOXES) and client.xlen(raw) == 0:
            continue
        leaks.append(f"{key} ({kind})")
    return sorted(leaks)


def _matches(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern.replace("[", "[[]"))
