"""The live workers of an installation: how many of each role, what they read, what they start, and what they do."""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from gymq.errors import one_line
from gymq.store.sharded import Shards
from gymq.store.worker_registry import WorkerEntry, live_executors, live_workers
from gymq.wire.activity import Activity, merge


class Workforce(msgspec.Struct):
    """The live workers; a process counts once, though it has an entry on each shard.

    Args:
        roles: how many there are of each role; `quarantine` and `executor` are among them.
        readers: how many read each mailbox, and `executor`.
        starting: seconds since the beginning of the oldest worker that will read a mailbox and cannot yet, by the mailbox.
        loads: figures of model workers that host their model, by the worker's host and process.
        activity: what all of them did in the last minute.
    """

    roles: dict[str, int] = {}
    readers: dict[str, int] = {}
    starting: dict[str, float] = {}
    loads: dict[str, dict[str, float]] = {}
    activity: Activity = msgspec.field(default_factory=Activity)


async def read_workforce(shards: Shards) -> Workforce:
    """Read the live workers of all shards."""
    processes: dict[tuple[str, str, int, bool], WorkerEntry] = {}
    activities: list[Activity] = []
    for entries in await shards.each(live_workers):
        for entry in entries.values():
            key = (entry.role, entry.host, entry.pid, bool(entry.starting))
            if entry.activity is not None:
                # Each shard's entry tells the events of the whole process, and what it has in work of that shard.
                activities.append(Activity(working=entry.activity.working) if key in processes else entry.activity)
            processes[key] = entry
    executors = {name for names in await shards.each(live_executors) for name in names}
    working = [entry for entry in processes.values() if not entry.starting]
    # A quarantine reads suspects only, and comes and goes with them.
    roles = Counter("quarantine" if entry.quarantine else entry.role for entry in working)
    readers = Counter(name for entry in working if not entry.quarantine for name in entry.mailboxes)
    if executors:
        roles["executor"] = readers["executor"] = len(executors)
    now = time.time()
    starting: dict[str, float] = {}
    for entry in processes.values():
        for name in entry.starting:
            starting[name] = max(starting.get(name, 0.0), now - entry.started)
    loads = {f"{entry.host}-{entry.pid}": entry.load for entry in working if entry.load}
    activity = merge(activities)
    activity.fault = one_line(activity.fault)  # whoever may write to Redis may have chosen it, and a terminal shows it
    return Workforce(dict(sorted(roles.items())), dict(readers), starting, dict(sorted(loads.items())), activity)
