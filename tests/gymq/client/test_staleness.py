"""Delivery: what is too old at that moment is acknowledged and passed over, groups as a whole."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gymq.aio import cancel_and_wait
from gymq.client.consumer import Results
from gymq.client.publish_weights import forget, publish
from gymq.errors import UsageError
from gymq.store.run_status import read_status
from gymq.store.runs import RunConfig, close
from gymq.store.sharded import Shards
from tests.support.rollouts import Pretender, linked
from tests.support.tiers import examples


async def reach(settings, version: int) -> None:
    """Publish a version."""
    async with Shards(settings, "test") as shards:
        await publish(shards, "policy", version, "/nowhere")


@pytest.fixture
async def connection(settings):
    async with linked(settings) as connection:
        yield connection
        async with Shards(settings, "test") as shards:
            await forget(shards, "policy")


async def make(connection, samples: int = 1, rows: int = 4) -> Pretender:
    run = Pretender(connection, RunConfig("r", "weather", "tool", "policy", samples=samples))
    await run.create("trainer")
    await run.enqueue(rows)
    await run.admit()
    return run


async def take(results: Results) -> list:
    found = []
    async for item in results:
        found.append(item)
        await results.ack(item)
    return found


async def test_what_is_too_old_is_passed_over_counted_and_acknowledged(settings, connection):
    run = await make(connection)
    await run.end("r.0.0", versions=[3, 9])
    await run.end("r.1.0", versions=[4, 4])
    await run.end("r.2.0", versions=[6, 6])
    await run.end("r.3.0")  # nobody said of which version it is
    await close(connection, "r")
    await reach(settings, 6)
    results = Results("r", "trainer", settings=settings, max_staleness=2)
    assert [item.id for item in await take(results)] == ["r.1.0", "r.2.0", "r.3.0"]
    assert results.stale == 1
    assert (await read_status(connection, "r")).state == "done"


async def test_a_group_with_a_member_that_is_too_old_is_passed_over_as_a_whole(settings, connection):
    run = await make(connection, samples=2, rows=2)
    await run.end("r.0.0", versions=[5, 5])
    await run.end("r.1.0", "r.1.1", versions=[6, 6])
    await run.end("r.0.1", versions=[3, 6])
    await close(connection, "r")
    await reach(settings, 6)
    results = Results("r", "trainer", "group", settings, max_staleness=1)
    assert [item.id for item in await take(results)] == ["r.1"]
    assert results.stale == 2
    assert (await read_status(connection, "r")).state == "done"


async def test_what_grows_too_old_while_it_waits_for_its_turn_is_not_delivered(settings, connection):
    run = await make(connection)
    await run.end(*run.live, versions=[1, 1])
    await close(connection, "r")
    await reach(settings, 1)
    results = Results("r", "trainer", settings=settings, max_staleness=0)
    found = []
    async for item in results:
        found.append(item.id)
        if len(found) == 2:  # the other two were read, and wait in this process
            await reach(settings, 2)
    assert found == ["r.0.0", "r.1.0"]
    assert results.stale == 2


async def test_what_is_passed_over_makes_room_while_the_run_goes_on(settings, connection):
    run = await make(connection)
    await reach(settings, 5)
    await run.end(*run.live, versions=[1, 1])
    results = Results("r", "trainer", settings=settings, max_staleness=0)
    reading = asyncio.create_task(anext(aiter(results)))
    until = asyncio.get_running_loop().time() + 5
    while (await read_status(connection, "r")).unread["trainer"] and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.02)
    assert (await read_status(connection, "r")).unread == {"trainer": 0}
    await cancel_and_wait([reading])
    await results.close()


async def test_without_a_limit_everything_is_delivered(settings, connection):
    run = await make(connection)
    await run.end(*run.live, versions=[1, 1])
    await close(connection, "r")
    await reach(settings, 1000)
    assert len(await take(Results("r", "trainer", settings=settings))) == 4


@pytest.mark.parametrize("wrong", [-1, 1.5, "2", True])
def test_a_limit_that_is_no_number_of_versions_is_refused(settings, wrong):
    with pytest.raises(UsageError, match="max_staleness"):
        Results("r", "trainer", settings=settings, max_staleness=wrong)


@hypothesis_settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.integers(1, 3), most=st.integers(0, 3), seed=st.integers(0, 1 << 32))
def test_nothing_delivered_is_ever_too_old_and_nothing_hangs(settings, samples, most, seed):
    asyncio.run(_play(settings, samples, most, random.Random(seed)))


async def _play(settings, samples: int, most: int, chance: random.Random) -> None:
    rows = 6
    async with linked(settings) as connection:
        await connection.send("FLUSHALL")
        run = await make(connection, samples, rows)
        unit = chance.choice(("rollout", "group"))
        results = Results("r", "trainer", unit, settings, max_staleness=most)
        current, delivered = 0, 0

        async def bump() -> None:
            nonlocal current
            current += chance.randint(1, 2)
            await reach(settings, current)

        await bump()
        while run.live:
            some = chance.sample(run.live, chance.randint(1, len(run.live)))
            for rid in some:
                await run.end(rid, versions=[max(0, current - chance.randint(0, 3)), current])
            if chance.random() < 0.5:
                await bump()
        await close(connection, "r")
        async for item in results:
            members = item.rollouts if unit == "group" else [item]
            assert all(current - member.versions[0] <= most for member in members)
            delivered += len(members)
            await results.ack(item)
            if chance.random() < 0.3:
                await bump()
        assert delivered + results.stale == rows * samples
        assert (await read_status(connection, "r")).state == "done"
        await connection.send("FLUSHALL")
