"""A Redis server of tests: find keys that would stay for ever, and roll it back."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import psutil
from redis import Redis

from gymq.store.keys import Keys

#: The keys of any shard, as patterns.
keys: Any = Keys("*")  # type: ignore[arg-type]

#: Keys that may stay without a TTL: registries, and the queue bindings that kombu keeps.
LASTING = (
    keys.workers,
    keys.private,
    keys.runs,
    keys.paused,
    keys.shards,
    keys.weights("*"),
    keys.load_failures("*"),
    "_kombu.binding*",
)

#: Mailboxes stay, with their consumer group, but what was in them is acknowledged and deleted.
MAILBOXES = (keys.mailbox("*"),)


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
        if kind == "stream" and ":m:@" in key:
            prefix, _, worker = key.partition("m:@")
            if client.xlen(raw) == 0 and client.hexists(f"{prefix}private", worker):
                continue
        elif kind == "stream" and any(_matches(key, pattern) for pattern in MAILBOXES) and client.xlen(raw) == 0:
            continue
        leaks.append(f"{key} ({kind})")
    return sorted(leaks)


def left_by_done_runs(client: Redis) -> list[str]:
    """The keys without a TTL that runs have left which are done."""
    prefix = keys.run("")
    done = [
        raw.decode().removeprefix(prefix)
        for raw in client.scan_iter(f"{prefix}*", count=1000)
        if client.type(raw) == b"hash" and client.hget(raw, "state") == b"done"
    ]
    left: list[str] = []
    for name in done:
        of_run = [keys.run(name), keys.rows(name), keys.chunks(name), keys.live(name), keys.groups(name), keys.skip(name)]
        of_run += [keys.results(name)]
        for kind in (keys.rollout, keys.messages, keys.calls):
            of_run += [raw.decode() for raw in client.scan_iter(f"{kind(name)}.*", count=1000)]
        left += [key for key in of_run if client.ttl(key) == -1]
    return sorted(left)


def snapshot(client: Redis) -> dict[bytes, tuple[int, bytes]]:
    """All keys with their time to live, in ms (0: for ever), and what they hold: to go back to with `roll_back`."""
    found = {}
    for key in client.scan_iter(count=1000):
        found[key] = (max(client.pttl(key), 0), client.dump(key))
    return found


def roll_back(client: Redis, to: dict[bytes, tuple[int, bytes]]) -> None:
    """Make the server forget what came after a snapshot, as if it had lost the end of its log."""
    pipe = client.pipeline(transaction=True)
    pipe.flushdb()
    for key, (ttl, value) in to.items():
        pipe.restore(key, ttl, value)
    pipe.execute()


def _matches(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern.replace("[", "[[]"))
