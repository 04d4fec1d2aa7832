"""The ledger and admission: nothing enters twice, credits hold, and no credits are so small that a run stops for ever."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gymq.errors import RunClosed, UnknownName
from gymq.settings import Settings
from gymq.store import scripts, task_ledger
from gymq.store.connection import Connection
from gymq.store.run_status import read_status
from gymq.store.runs import RunConfig, cancel, close
from gymq.store.task_ledger import TaskLedger, find_rows
from gymq.wire.ids import PartId
from gymq.wire.message import Message, encode_message
from gymq.wire.task import Task, encode_task
from tests.support.rollouts import Pretender, acknowledge, linked
from tests.support.shard import keys
from tests.support.tiers import examples

#: Steps of which each is something that an agent or a consumer does by chance, before all of them do their best.
CHAOS = 40


def config(name: str = "r", **fields) -> RunConfig:
    return RunConfig(name, "weather", "tool", "scripted", **fields)


def tasks(count: int, environment: str = "weather") -> list[Task]:
    return [Task(str(i), environment, [encode_message(Message(role="user", content="?"))]) for i in range(count)]


@pytest.fixture
async def run(settings):
    """A run without consumers; `run.link` is a connection."""
    async with linked(settings) as connection:
        pretender = Pretender(connection, config())
        await pretender.create()
        yield pretender


# The ledger.


async def test_a_chunk_enters_once(run):
    book = TaskLedger([run.connection], "r")
    assert await book.write("c1", tasks(3)) == 3
    assert await book.write("c1", tasks(3)) == 0
    assert await book.write("c2", tasks(2)) == 2
    assert [{name: content.rows for name, content in chunks.items()} for chunks in await book.chunks()] == [{"c1": 3, "c2": 2}]
    assert (await read_status(run.connection, "r")).rows == 5


async def test_the_rows_of_unfinished_tasks_are_found_by_their_ids(run):
    await TaskLedger([run.connection], "r").write("c1", tasks(1200))
    assert await find_rows(run.connection, "r", {"0", "7", "1199", "none"}) == {"0": 0, "7": 7, "1199": 1199}
    assert await find_rows(run.connection, "other", {"0"}) == {}


async def test_a_chunk_that_two_producers_write_at_once_enters_once(settings, run):
    async with linked(settings) as other:
        written = await asyncio.gather(
            TaskLedger([run.connection], "r").write("c1", tasks(3)), TaskLedger([other], "r").write("c1", tasks(3))
        )
    assert sorted(written) == [0, 3]
    assert (await read_status(run.connection, "r")).rows == 3


async def test_a_run_that_is_over_takes_no_rows_but_knows_those_it_has(run):
    book = TaskLedger([run.connection], "r")
    await book.write("c1", tasks(3))
    await close(run.connection, "r")
    assert await book.write("c1", tasks(3)) == 0
    with pytest.raises(RunClosed, match="'r' takes no more rows"):
        await book.write("c2", tasks(3))
    await cancel(run.connection, "r")
    with pytest.raises(RunClosed):
        await book.write("c2", tasks(3))


async def test_an_environment_that_is_not_installed_is_refused(run):
    with pytest.raises(UnknownName, match="unknown environment 'nowhere'"):
        await TaskLedger([run.connection], "r").write("c1", tasks(1, "nowhere"))


async def test_a_producer_waits_while_the_ledger_is_full_and_then_goes_on(run, monkeypatch):
    # Given a ledger that has room for five rows
    monkeypatch.setattr(task_ledger, "MAX_BYTES", 5 * len(encode_task(tasks(1)[0])))
    book = TaskLedger([run.connection], "r")
    await book.write("c1", tasks(3))
    writing = asyncio.create_task(book.write("c2", tasks(3)))
    await asyncio.sleep(3 * task_ledger.FULL_RETRY_PAUSE)
    assert not writing.done()
    # When a row is done with
    await run.admit()
    await run.end(run.live[0])
    # Then the chunk enters
    assert await asyncio.wait_for(writing, 2) == 3
    # And when all are done with, nothing counts as held
    while await run.admit() or run.live:
        await run.end(*run.live)
    assert await run.connection.send("HGET", keys.run("r"), "bytes") == b"0"


async def test_finished_rollouts_bound_a_run_by_their_bytes_too(run):
    # Given a consumer that reads nothing, and finished rollouts of some kilobytes
    await run.enqueue(10)
    assert await run.admit(5) == 5
    await run.end(*run.live)
    held = await run.connection.send("MEMORY", "USAGE", keys.results("r"))
    # When they are more than the run may keep
    assert await run.connection.run(scripts.admit(5, 0, 100, held - 1, 60_000)) == scripts.Admitted(0, 0)
    # Then nothing is admitted until they are fewer, or may be more
    assert await run.connection.run(scripts.admit(5, 0, 100, held, 60_000)) == scripts.Admitted(5, 0)


async def test_a_chunk_larger_than_the_ledger_enters_an_empty_one(run, monkeypatch):
    monkeypatch.setattr(task_ledger, "MAX_BYTES", 2)
    assert await asyncio.wait_for(TaskLedger([run.connection], "r").write("c1", tasks(3)), 2) == 3


# Admission.


async def test_rollouts_are_admitted_while_credits_last(settings):
    async with linked(settings) as connection:
        run = Pretender(connection, config(samples=2, concurrency=3))
        await run.create("trainer")
        await run.enqueue(3)
        assert (await run.admit(), run.live) == (3, ["r.0.0", "r.0.1", "r.1.0"])
        assert await run.admit() == 0
        await run.end("r.0.1")
        assert (await run.admit(), run.live[-1]) == (1, "r.1.1")


async def test_admission_waits_for_the_slowest_consumer_but_finishes_the_group_that_has_begun(settings):
    async with linked(settings) as connection:
        # Given consumers that may be two rollouts behind, a group that has begun, and two finished rollouts before it
        run = Pretender(connection, config(samples=2, concurrency=3, backlog=2))
        await run.create("trainer", "sink")
        await run.enqueue(5)
        await run.admit()
        await run.end("r.1.0", "r.0.0", "r.0.1")
        # Then its other sample is admitted, and no other group
        await run.admit()
        assert run.live == ["r.1.1"]
        # When one consumer has everything, the other nothing
        await acknowledge_new(connection, "sink")
        assert await run.admit() == 0
        # Then it takes the other to go on
        await acknowledge_new(connection, "trainer")
        assert (await run.admit(), run.live) == (2, ["r.1.1", "r.2.0", "r.2.1"])


async def test_what_stands_acknowledged_behind_a_straggler_holds_up_nothing(settings):
    async with linked(settings) as connection:
        # Given a group whose first member ended long ago and whose second takes its time
        run = Pretender(connection, config(samples=2, concurrency=4, backlog=4))
        await run.create("trainer")
        await run.enqueue(20)
        await run.admit()
        await run.end("r.0.0")
        (straggler,) = await read(connection, "trainer")
        # When others end and are acknowledged, though the straggler's keeps them from being trimmed
        for _ in range(10):
            await run.end(*[rid for rid in run.live if rid != "r.0.1"])
            await acknowledge_new(connection, "trainer")
            await run.admit()
        # Then the run went on
        assert (await read_status(connection, "r")).admitted > 20
        assert await connection.send("XLEN", keys.results("r")) > 4
        assert straggler[1][1] == b"r.0.0"


async def test_no_more_begin_than_are_used_before_they_are_too_old(settings):
    async with linked(settings) as connection:
        # Given a trainer of four rollouts for each version, and one version of staleness
        run = Pretender(connection, config(samples=2, max_staleness=1, batch=4))
        await run.create("trainer")
        await run.enqueue(50)
        # Then two batches are begun, whatever is in flight and whatever has ended
        assert await run.admit() == 8
        await run.end(*run.live[:5])
        assert await run.admit() == 0
        # and as many more as were used
        entries = await read(connection, "trainer")
        await acknowledge(connection, "r", "trainer", [entry for entry, _ in entries[:4]])
        assert await run.admit() == 4
        await run.end(*run.live)
        assert await run.admit() == 0
        await acknowledge_new(connection, "trainer")
        assert await run.admit() == 8


async def test_a_group_that_is_finished_behind_a_full_backlog_begins_no_other(settings):
    async with linked(settings) as connection:
        # Given groups of which a sink has the last member each, and a consumer that reads nothing
        run = Pretender(connection, config(samples=3, concurrency=2, backlog=2))
        await run.create("trainer")
        await connection.send("SADD", keys.skip("r"), *[f"r.{row}.2" for row in range(20)])
        await run.enqueue(20)
        # When all that is admitted ends at once
        for _ in range(20):
            await run.admit()
            await run.end(*run.live)
        # Then no more groups have begun than it takes to be that far behind
        assert (await read_status(connection, "r")).admitted <= 6


async def test_what_a_sink_has_is_skipped_in_steps_that_do_not_hold_up_the_server(settings):
    async with linked(settings) as connection:
        run = Pretender(connection, config(samples=4))
        await run.create()
        await connection.send("SADD", keys.skip("r"), *[f"r.{row}.{sample}" for row in range(9) for sample in range(4)])
        await run.enqueue(10)
        assert await connection.run(scripts.admit(128, 0, 10, 1 << 40, 60_000)) == scripts.Admitted(0, 10)
        assert await connection.run(scripts.admit(128, 0, 10, 1 << 40, 60_000)) == scripts.Admitted(0, 10)
        assert await connection.run(scripts.admit(128, 0, 100, 1 << 40, 60_000)) == scripts.Admitted(4, 16)
        assert (await read_status(connection, "r")).by_status == {"kept": 36}
        assert await connection.send("HKEYS", keys.rows("r")) == [b"9"]


async def test_runs_take_turns(settings):
    async with linked(settings) as connection:
        first, second = Pretender(connection, config("a", concurrency=100)), Pretender(connection, config("b", concurrency=100))
        for run in (first, second):
            await run.create()
            await run.enqueue(100)
        assert await first.admit(20) == 20
        order = "".join(rid[0] for rid in first.live)
        assert order in ("a" * 10 + "b" * 10, "b" * 10 + "a" * 10)


@pytest.mark.slow
@hypothesis_settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(1, 4),
    concurrency=st.integers(1, 6),
    backlog=st.integers(1, 6),
    staleness=st.integers(0, 2),
    batch=st.integers(0, 4),
    rows=st.integers(1, 8),
    skipped=st.integers(0, 6),
    cancels=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
def test_no_credits_are_so_small_that_partial_groups_stop_a_run(
    settings: Settings, samples, concurrency, backlog, staleness, batch, rows, skipped, cancels, seed
):
    limits = config(samples=samples, concurrency=concurrency, backlog=backlog, max_staleness=staleness, batch=batch)
    asyncio.run(_play(settings, limits, rows, skipped, cancels, seed))


async def _play(settings: Settings, config: RunConfig, rows: int, skipped: int, cancels: bool, seed: int) -> None:
    chance = random.Random(seed)
    async with linked(settings) as connection:
        await connection.send("FLUSHALL")
        # Given a run, some of whose rollouts a sink has already, a trainer of whole groups and a sink of single rollouts
        run = Pretender(connection, config)
        await run.create("trainer", "sink")
        every = [f"r.{row}.{sample}" for row in range(rows) for sample in range(config.samples)]
        skip = set(chance.sample(every, min(skipped, len(every))))
        if skip:
            await connection.send("SADD", keys.skip("r"), *skip)
        await run.enqueue(rows)
        await close(connection, "r")
        trainer, sink = Reader(connection, "trainer"), Reader(connection, "sink")
        doomed: set[str] = set()

        async def admit(most: int = 0) -> int:
            # What stands in incomplete groups is no backlog; behind a full one the group that has begun is finished.
            was = await read_status(connection, "r")
            partial = int(await connection.send("HGET", keys.run("r"), "partial") or 0)
            admitted = await run.admit(most or chance.choice((1, 2, 128)))
            assert len(run.live) <= config.concurrency
            begun = (await read_status(connection, "r")).admitted
            if (max(was.unread.values()) - partial >= config.backlog) or (
                config.ahead and was.live + max(was.unread.values()) >= config.ahead
            ):
                assert begun <= -(-was.admitted // config.samples) * config.samples
            elif was.live < config.concurrency and was.admitted < was.total:
                assert begun > was.admitted
            return admitted

        async def end(all_of_them: bool = False) -> None:
            ending = list(run.live) if all_of_them else chance.sample(run.live, chance.randint(0, len(run.live)))
            chance.shuffle(ending)
            going = [rid for rid in ending if rid not in doomed]
            if going:
                await run.end(*going, status=chance.choice(("completed", "failed", "truncated")))
            if doomed.intersection(ending):
                await run.end(*[rid for rid in ending if rid in doomed], status="cancelled")

        async def cancel_some() -> None:
            row, sample = chance.randrange(rows), chance.choice((None, *range(config.samples)))
            cancelled = await connection.run(scripts.cancel_rollouts("r", [PartId(row, sample)]))
            if not cancelled.targets:
                return  # the run is done
            (counts,) = cancelled.targets
            meant = {rid for rid in every if rid.startswith(f"r.{row}." if sample is None else f"r.{row}.{sample}")}
            doomed.update(meant.intersection(run.live))
            assert counts.live == len(meant.intersection(run.live))
            waiting = {rid.decode() for rid in await connection.send("SMEMBERS", keys.cancelled("r"))} & meant
            assert counts.waiting >= len(waiting - skip)
            doomed.update(waiting - skip)
            await connection.send("XTRIM", keys.mailbox("agent"), "MAXLEN", 0)  # what is in flight hears of it here

        # When agents and consumers do things by chance, several rollouts ending in one commit
        for _ in range(CHAOS):
            await chance.choice(
                (
                    admit,
                    end,
                    cancel_some if cancels else end,
                    lambda: trainer.use(chance, groups=True),
                    lambda: sink.use(chance, groups=False),
                )
            )()
        # And then everybody does their best, as long as that changes anything
        before, now = None, await read_status(connection, "r")
        while before != now:
            before = now
            while await admit(128):
                pass
            await end(all_of_them=True)
            await sink.use(None, groups=False)
            await trainer.use(None, groups=True)
            now = await read_status(connection, "r")
        # Then the run is over: every rollout ended, once, and everybody has seen it
        end_of_it = await read_status(connection, "r")
        assert (end_of_it.state, end_of_it.ended, end_of_it.live) == ("done", len(every), 0)
        assert end_of_it.unread == {"sink": 0, "trainer": 0}
        assert end_of_it.by_status.get("cancelled", 0) == len(doomed)
        assert sorted(sink.seen) == sorted(trainer.seen) == sorted(set(every) - skip)
        assert await connection.send("HGET", keys.run("r"), "partial") in (None, b"0")
        assert await connection.send("EXISTS", keys.rows("r"), keys.groups("r"), keys.live("r"), keys.results("r")) <= 1


class Reader:
    """A consumer that uses what it has in any order; of groups only those that are whole."""

    def __init__(self, connection: Connection, consumer: str) -> None:
        self.connection = connection
        self.consumer = consumer
        self.seen: list[str] = []
        self._held: dict[bytes, str] = {}
        self._whole: set[str] = set()

    async def use(self, chance: random.Random | None, groups: bool) -> None:
        """Read some and acknowledge some; all that can be, if nothing is left to chance."""
        for entry, fields in await read(self.connection, self.consumer, chance.randint(1, 5) if chance else 1000):
            rid = fields[1].decode()
            self.seen.append(rid)
            self._held[entry] = rid
            if fields[3] == b"1":
                self._whole.add(rid.rpartition(".")[0])
        usable = [entry for entry, rid in self._held.items() if not groups or rid.rpartition(".")[0] in self._whole]
        used = chance.sample(usable, chance.randint(0, len(usable))) if chance else usable
        for entry in used:
            del self._held[entry]
        await acknowledge(self.connection, "r", self.consumer, used)


async def read(connection: Connection, consumer: str, count: int = 1000) -> list:
    """What a consumer was not given before."""
    stream = keys.results("r")
    reply = await connection.send("XREADGROUP", "GROUP", consumer, "reader", "COUNT", count, "STREAMS", stream, ">")
    return reply[0][1] if reply else []


async def acknowledge_new(connection: Connection, consumer: str) -> None:
    """Read and acknowledge all that is new."""
    await acknowledge(connection, "r", consumer, [entry for entry, _ in await read(connection, consumer)])
