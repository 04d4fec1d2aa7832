"""The worker registry: who is alive, and what is left out."""

from __future__ import annotations

import msgspec

from gymq.store.worker_registry import WorkerEntry, live_executors, live_workers, registrations
from tests.support.shard import keys


async def test_live_workers_are_those_with_a_heartbeat_and_a_readable_entry(connection):
    entry = WorkerEntry("model", "h", 7, ["model:m"], quarantine=True, load={"waiting": 2.0})
    data = msgspec.json.encode(entry)
    entries = {"live": data, "lapsed": data, "judged": b"dead" + data, "forged": b'{"mailboxes":[]}'}
    for name, value in entries.items():
        await connection.send("HSET", keys.workers, name, value)
        if name != "lapsed":
            await connection.send("SET", keys.alive(name), 1)
    assert await live_workers(connection) == {"live": entry}
    found = {one.worker: one for one in await registrations(connection)}
    assert found.keys() == entries.keys()
    assert [name for name, one in found.items() if not one.alive] == ["lapsed"]
    assert [name for name, one in found.items() if one.declared_dead] == ["judged"]
    assert found["judged"].entry() == entry


async def test_an_entry_is_written_as_other_versions_read_it():
    written = msgspec.json.decode(msgspec.json.encode(WorkerEntry("agent", "h", 7, ["agent"], quarantine=True, started=1.5)))
    assert {name: written[name] for name in ("role", "host", "pid", "mailboxes", "alone", "started")} == {
        "role": "agent",
        "host": "h",
        "pid": 7,
        "mailboxes": ["agent"],
        "alone": True,
        "started": 1.5,
    }


async def test_executors_are_known_by_their_heartbeat_alone(connection):
    await connection.send("SET", keys.alive("executor-h-7-ab"), 1)
    await connection.send("SET", keys.alive("agent-h-7-ab"), 1)
    assert await live_executors(connection) == ["executor-h-7-ab"]
    assert await live_workers(connection) == {}
