"""Moves of the machine that producers, operators and consumers make."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from gymq.store import scripts
from gymq.store.scripts import EnqueueRefusal
from gymq.wire.ids import PartId
from tests.support.protocol.worker import Reader
from tests.support.protocol.world import World
from tests.support.shard import keys

SAMPLES = {"solo": 1, "pair": 2}
RUNS = st.sampled_from(sorted(SAMPLES))
PICK = st.integers(0, 1000)

#: Bytes of a ledger that is never full.
MANY = 1 << 30


class Operators(RuleBasedStateMachine):
    """All that is done to runs from outside."""

    world: World

    # The producer and the operator.

    @rule(name=RUNS, rows=st.integers(1, 3), most=st.sampled_from([10, MANY, MANY]))
    def enqueue(self, name: str, rows: int, most: int) -> None:
        """Enqueue a chunk twice; the ledger has room for that many bytes."""
        run = self.world.history.runs[name]
        tasks = [b"%d" % next(self.world.ids) * (1 + row) for row in range(rows)]
        held = sum(map(len, run.unfinished().values()))
        full = held and held + sum(map(len, tasks)) > most
        chunk = len(run.chunks)
        refusal = EnqueueRefusal.CLOSED if run.state != "open" else EnqueueRefusal.FULL if full else None
        assert self.world.script(scripts.enqueue(name, chunk, most, tasks)) == (refusal or rows)
        if refusal is None:
            run.tasks += tasks
            run.chunks.add(chunk)
            assert self.world.script(scripts.enqueue(name, chunk, most, tasks)) == 0

    @rule(most=st.integers(1, 4))
    def admit(self, most: int) -> None:
        runs = self.world.history.runs.values()
        admission = self.world.script(scripts.admit(most, 4096, 100, 1 << 40, 60_000))
        before = sum(run.cursor for run in runs)
        for run in runs:
            count = int(self.world.redis.hget(keys.run(run.name), "cursor") or 0) - run.cursor
            assert not count or not (self.world.history.paused or run.paused or run.state in ("cancelled", "done"))
            run.admitted(count)
        assert admission == scripts.Admitted(sum(run.cursor for run in runs) - before, 0)
        assert admission.admitted <= most

    @rule(name=RUNS, again=st.booleans())
    def close_run(self, name: str, again: bool) -> None:
        """Say that there are no more rows, and perhaps take it back."""
        run = self.world.history.runs[name]
        assert self.world.script(scripts.close_run(name)) == {"open": 1, "closed": 0, "done": 0, "cancelled": -1}[run.state]
        run.state = "closed" if run.state == "open" else run.state
        if again:
            reopened = run.state == "closed"
            assert self.world.script(scripts.reopen_run(name)) == reopened
            run.state = "open" if reopened else run.state

    @rule(name=RUNS, twice=st.booleans())
    def cancel(self, name: str, twice: bool) -> None:
        run = self.world.history.runs[name]
        for _ in range(1 + twice):
            assert self.world.script(scripts.cancel_run(name)) == (None if run.state == "done" else len(run.live))
            if run.state != "done":
                run.state = "cancelled"
                run.unwanted |= run.live

    @rule(name=RUNS, places=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, 0, 1])), min_size=1, max_size=2))
    def cancel_some(self, name: str, places: list[tuple[int, int | None]]) -> None:
        """Cancel groups and rollouts, some of which have not begun, have ended, or are not there."""
        run = self.world.history.runs[name]
        cancelled = self.world.script(scripts.cancel_rollouts(name, [PartId(*place) for place in places]))
        assert cancelled.state == run.state
        if run.state not in ("open", "closed"):
            assert not cancelled.targets
            return
        waiting: set[str] = set()
        flying: set[str] = set()
        good = True
        for (row, sample), counts in zip(places, cancelled.targets, strict=True):
            exist = row < len(run.tasks) and (sample or 0) < run.samples
            meant = [] if not exist else run.members(row) if sample is None else [run.members(row)[sample]]
            rest = {rid for rid in meant if rid not in run.live and rid not in run.ended}
            assert counts == scripts.CancelTarget(len(run.live.intersection(meant)), len(rest), len(meant))
            good = good and counts.live + counts.waiting > 0
            waiting |= rest
            flying |= run.live.intersection(meant)
        run.marked |= waiting if good else set()
        run.unwanted |= flying if good else set()

    @rule(name=RUNS, rows=st.integers(1, 3), cancelled=st.booleans())
    def remove(self, name: str, rows: int, cancelled: bool) -> None:
        """Remove a run, perhaps one that was just cancelled, and create another one under its name with other rows.

        The mail of the old one lies where it lay, and workers hold it, and remember its rollouts.
        """
        if cancelled:
            self.cancel(name, False)
        self.world.remove(name)
        self.enqueue(name, rows, MANY)
        self.admit(4)

    @rule(name=st.sampled_from([None, *sorted(SAMPLES)]), paused=st.booleans())
    def pause(self, name: str | None, paused: bool) -> None:
        """Pause or resume one run, or all."""
        if name is None:
            self.world.history.paused = paused
            self.world.redis.set(keys.paused, 1) if paused else self.world.redis.delete(keys.paused)
        else:
            self.world.history.runs[name].paused = paused
            key = keys.run(name)
            self.world.redis.hset(key, "paused", 1) if paused else self.world.redis.hdel(key, "paused")

    # Consumers.

    @rule(name=RUNS, consumer=st.sampled_from(["sink", "trainer"]))
    def declare(self, name: str, consumer: str) -> None:
        self.world.declare(name, consumer)

    @precondition(lambda self: self.world.readers)
    @rule(which=PICK)
    def drop(self, which: int) -> None:
        self.world.drop(self.reader(which))

    def reader(self, which: int) -> Reader:
        readers = list(self.world.readers.values())
        return readers[which % len(readers)]

    @precondition(lambda self: self.world.readers)
    @rule(which=PICK, most=st.integers(1, 5), crashes=st.booleans(), acks=st.integers(0, 5))
    def consume(self, which: int, most: int, crashes: bool, acks: int) -> None:
        """Read some, perhaps in a new process, and acknowledge some, the newest first."""
        reader = self.reader(which)
        self.world.read(reader, most)
        if crashes:
            reader.held = {}
            self.world.recall(reader)
        self.world.acknowledge(reader, list(reader.held)[::-1][:acks])
