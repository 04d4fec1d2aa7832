"""What must be true at any time, whoever did what: the model's account against what stands in Redis."""

from __future__ import annotations

from typing import Any

from gymq.store import scripts
from tests.support.protocol.history import Run
from tests.support.protocol.steps import DUE
from tests.support.protocol.worker import AGENT, RESOURCE
from tests.support.protocol.world import CREDITS, World
from tests.support.shard import keys


def check(world: World) -> None:
    """Compare all runs."""
    mail = world.entries(AGENT)
    told = {(fields[1], int(fields[3])) for _, _, fields in mail}
    cancelled = {fields[1] for _, _, fields in mail if b"x" in fields[4::2]}
    asked = {tuple(fields[1].split()[:3]) for _, _, fields in world.entries(RESOURCE)}
    _private(world)
    for run in world.history.runs.values():
        _counts(world, run)
        for rid in run.live:
            _goes_on(world, rid, told, cancelled, asked)
        _results(world, run)


def _private(world: World) -> None:
    """A private mailbox is known as long as it is there, and open only for who may be alive and does not drain."""
    known = world.redis.hgetall(keys.private)
    streams = {raw.decode() for raw in world.redis.keys(keys.private_mailbox("*"))}
    assert streams == {keys.private_mailbox(worker.decode()) for worker in known}
    registry = world.redis.hgetall(keys.workers)
    for worker, open_for in known.items():
        assert worker in registry, f"nobody will find the private mailbox of {worker.decode()}"
        assert not open_for or not registry[worker].startswith(b"dead")
    for worker in (*world.workers, *world.zombies):
        if worker.private and worker.drains:
            own = keys.private_mailbox(worker.name)
            waits = world.redis.xlen(own) - (world.redis.xpending(own, "g")["pending"] if world.redis.exists(own) else 0)
            assert not waits, "mail waits for a worker that takes none"


def _counts(world: World, run: Run) -> None:
    """The run's record, ledger and credits."""
    pipe = world.redis.pipeline(transaction=False)
    pipe.hgetall(keys.run(run.name))
    pipe.smembers(keys.live(run.name))
    pipe.hgetall(keys.rows(run.name))
    pipe.hgetall(keys.groups(run.name))
    pipe.smembers(keys.cancelled(run.name))
    record, live, rows, groups, marked = pipe.execute()
    assert record[b"state"].decode() == run.state

    def count(name: bytes) -> int:
        return int(record.get(name, 0))

    assert {rid.decode() for rid in live} == run.live, "credits are not what is in flight"
    assert len(live) <= CREDITS
    assert count(b"cursor") == run.cursor == len(run.live) + len(run.ended)
    assert count(b"rows") == len(run.tasks)
    assert count(b"ended") == len(run.ended)
    assert {int(row): task for row, task in rows.items()} == run.unfinished()
    assert count(b"bytes") == sum(map(len, rows.values()))
    assert {int(row): int(ended) for row, ended in groups.items()} == run.partial()
    assert count(b"partial") == sum(run.partial().values())
    assert {run.address(rid.decode()) for rid in marked} == run.marked
    for status in ("completed", "cancelled"):
        assert count(b"n:" + status.encode()) == list(run.ended.values()).count(status)


def _goes_on(world: World, rid: str, told: set[Any], cancelled: set[Any], asked: set[Any]) -> None:
    """A rollout in flight has something that brings it on: mail of its version, a call that somebody has, or its time."""
    fields = world.redis.hgetall(keys.rollout(rid))
    version = int(fields[b"v"])
    pending = {tuple(name[1:].split(b".")) for name in fields if name[:1] == b"c"}
    waits = {name for name in fields if name[:1] == b"y"}
    due = world.redis.zscore(keys.due, rid)
    assert due is not None and due >= DUE, f"{rid} is never due"
    if fields.get(b"s") == b"waiting":
        assert not pending and not waits, f"{rid} waits, and calls are pending"
    elif not pending:
        assert (rid.encode(), version) in told or rid.encode() in cancelled, f"{rid} is forgotten"
    # A call that was answered, or given up, is not pending; one that is pending lies in a mailbox.
    assert all(int(step) == version for step, _ in pending), f"{rid} has gone on without its calls"
    assert all((rid.encode(), *call) in asked for call in pending), f"a call of {rid} is forgotten"
    assert all((rid, int(step), int(n)) not in world.history.answered for step, n in pending)


def _results(world: World, run: Run) -> None:
    """Nothing is trimmed that a consumer has not acknowledged, and what it is behind is known."""
    there = [run.address(fields[b"r"].decode()) for _, fields in world.redis.xrange(keys.results(run.name))]
    assert len(there) == len(set(there))
    assert set(there) <= set(run.ended)
    for consumed in run.consumers.values():
        assert consumed.due - consumed.acked <= set(there), "what somebody needs is gone"
    behind = world.script(scripts.consumer_lag(run.name))
    assert behind == {name: len(one.due - one.acked) for name, one in run.consumers.items()}
