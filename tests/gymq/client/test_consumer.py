"""Consumers: each sees everything, once it is acknowledged it is gone, and what was not acknowledged comes back."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys

import pytest
from redis import Redis

from gymq.client.consumer import Results, consume
from gymq.errors import MemberReplaced, UnknownName, UsageError
from gymq.store import scripts
from gymq.store.runs import RunConfig, cancel, close
from tests.support.redis_server import roll_back, snapshot
from tests.support.rollouts import Pretender, Workers, linked, produce, run_tasks, status, weather, with_link
from tests.support.shard import keys
from tests.support.waiting import wait_until

#: A process that takes some rollouts, acknowledges a few and is gone; prints the ids.
TAKER = """
import os, sys
from gymq.client.consumer import consume
take, acknowledge = int(sys.argv[1]), int(sys.argv[2])
results = consume("r", "trainer")
for i, rollout in enumerate(results):
    print(rollout.id, flush=True)
    if i < acknowledge:
        results.ack(rollout)
    if i + 1 == take:
        os._exit(0)
"""


def config(samples: int = 1, **fields) -> RunConfig:
    return RunConfig("r", "weather", "tool", "scripted", samples=samples, **fields)


@pytest.fixture
async def run(settings):
    """A run of one sample a task, with the consumer `trainer` and an agent that does what the test says."""
    async with linked(settings) as connection:
        pretender = Pretender(connection, config())
        await pretender.create("trainer")
        yield pretender


@pytest.fixture
async def pairs(settings):
    """The same, with two samples a task."""
    async with linked(settings) as connection:
        pretender = Pretender(connection, config(samples=2))
        await pretender.create("trainer")
        yield pretender


async def length(run: Pretender) -> int:
    return await run.connection.send("XLEN", keys.results("r"))


async def state(run: Pretender) -> str:
    return (await run.connection.send("HGET", keys.run("r"), "state")).decode()


async def drain(settings, consumer: str = "trainer", unit="rollout") -> list:
    """Everything, acknowledged one by one."""
    results = Results("r", consumer, unit, settings)
    found = []
    async for item in results:
        found.append(item)
        await results.ack(item)
    return found


async def take(results: Results, count: int) -> list:
    """The next few items, not acknowledged."""
    found = []
    async for item in results:
        found.append(item)
        if len(found) == count:
            break
    return found


def cut(redis: Redis) -> None:
    """Break the connections of the trainer, as the end of a server does."""
    for client in redis.client_list():
        if client["name"] == "gymq-consumer-trainer":
            redis.client_kill_filter(_id=client["id"])


# Real workers.


def test_a_trainer_streams_groups_of_real_rollouts(spawn, settings, tmp_path, no_leaks):
    # Given workers and a run of three samples a task
    workers = Workers(spawn, settings, tmp_path).start_all()
    produce(settings, config(samples=3), weather(5, place="here"), consumers=["trainer"])
    # When a trainer takes the groups
    results = consume("r", "trainer", "group", settings)
    groups = []
    for group in results:
        groups.append(group)
        results.ack(group)
    results.close()
    # Then each has its samples in order, with their rewards and conversations
    assert {group.id for group in groups} == {f"r.{i}" for i in range(5)}
    assert all([rollout.sample for rollout in group.rollouts] == [0, 1, 2] and group.complete for group in groups)
    assert all(group.rewards == [1.0, 1.0, 1.0] for group in groups)
    rollout = groups[0].rollouts[0]
    assert (rollout.status, rollout.messages[0]["role"], rollout.messages[-1]["role"]) == ("completed", "user", "assistant")
    assert rollout.data["task"]["place"] == "here"
    # And the run is done, and nothing of it stays for ever
    assert status(settings, "r").state == "done"
    workers.stop()


@pytest.mark.slow
def test_a_cancelled_run_ends_the_iteration_and_flags_groups_that_are_incomplete(spawn, settings, tmp_path, no_leaks):
    # Given a run of two samples a task of which three rollouts fit at once, and a model that takes its time
    workers = Workers(spawn, settings, tmp_path).start_all(latency=3)
    produce(settings, config(samples=2, concurrency=3), weather(4), consumers=["trainer"])
    wait_until(lambda: status(settings, "r").live == 3)
    # When it is cancelled
    with_link(settings, lambda connection: cancel(connection, "r"))
    results = consume("r", "trainer", "group", settings)
    groups = list(results)
    # Then the iteration ends with what had begun, and says which group never got all its samples
    assert [(group.id, group.complete, len(group.rollouts)) for group in groups] == [("r.0", True, 2), ("r.1", False, 1)]
    assert {rollout.status for group in groups for rollout in group.rollouts} == {"cancelled"}
    assert {rollout.reward for group in groups for rollout in group.rollouts} == {None}
    # And acknowledging after the end counts too
    results.ack(*groups)
    results.close()
    assert status(settings, "r").state == "done"
    workers.stop()


@pytest.mark.slow
def test_what_a_dead_process_did_not_acknowledge_comes_back_in_a_new_one(spawn, settings, tmp_path, no_leaks):
    # Given twenty finished rollouts, and a process that took twelve, acknowledged five and died
    workers = Workers(spawn, settings, tmp_path).start_all()
    run_tasks(settings, config(), weather(20), consumers=["trainer"])
    workers.stop()
    env = {"GYMQ_REDIS_URL": settings.redis_url}
    taker = spawn([sys.executable, "-c", TAKER, "12", "5"], env, stdout=subprocess.PIPE)
    first = taker.communicate(timeout=30)[0].decode().split()
    # When another takes everything
    taker = spawn([sys.executable, "-c", TAKER, "99", "99"], env, stdout=subprocess.PIPE)
    second = taker.communicate(timeout=30)[0].decode().split()
    # Then it gets all but the five, in the same order
    assert len(first) == 12
    assert second[:7] == first[5:]
    assert sorted(first[:5] + second) == sorted(f"r.{i}.0" for i in range(20))
    assert status(settings, "r").state == "done"


# An agent that does what the test says.


async def test_a_group_comes_when_its_last_member_ends_while_the_run_goes_on(pairs, settings):
    await pairs.enqueue(3)
    await pairs.admit()
    results = Results("r", "trainer", "group", settings)
    groups = aiter(results)
    # Given two groups that have begun to end
    await pairs.end("r.0.1", "r.1.0")
    waiting = asyncio.ensure_future(anext(groups))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    # When the last member of one ends
    await pairs.end("r.1.1")
    group = await asyncio.wait_for(waiting, 2)
    # Then it comes, sorted by sample, though the other is not whole
    assert (group.id, [rollout.sample for rollout in group.rollouts], group.complete) == ("r.1", [0, 1], True)
    # And the other comes later, whatever the order in which its members ended
    await pairs.end("r.0.0")
    assert [rollout.sample for rollout in (await anext(groups)).rollouts] == [0, 1]
    await results.close()


async def test_every_consumer_sees_everything_at_its_own_pace(run, settings):
    # Given two consumers, of which one reads everything while the other reads nothing
    await run.connection.run(scripts.declare_consumer("r", "metrics"))
    await run.finish(10)
    assert len(await drain(settings, "metrics")) == 10
    # Then nothing is trimmed and the run is not done
    assert (await length(run), await state(run)) == (10, "closed")
    # When the slow one reads it too
    assert [rollout.id for rollout in await drain(settings)] == [f"r.{i}.0" for i in range(10)]
    # Then all is gone
    assert (await length(run), await state(run)) == (0, "done")


async def test_results_are_trimmed_by_the_slowest_consumer(run, settings):
    await run.connection.run(scripts.declare_consumer("r", "metrics"))
    await run.finish(10, close=False)
    slow, fast = Results("r", "trainer", settings=settings), Results("r", "metrics", settings=settings)
    ten = await take(fast, 10)
    await fast.ack(*ten)
    assert await length(run) == 10
    # When the slow one acknowledges three of four, but not the first
    four = await take(slow, 4)
    await slow.ack(*four[1:])
    # Then nothing goes before the first, for it would come back
    assert await length(run) == 10
    await slow.ack(four[0])
    assert await length(run) == 6
    # And both have the right number unread
    assert await run.connection.run(scripts.consumer_lag("r")) == {"metrics": 0, "trainer": 6}
    await slow.close()
    await fast.close()


async def test_a_late_consumer_starts_at_what_is_left_and_is_told(run, settings):
    # Given a run of which six of ten are acknowledged and gone
    await run.finish(10, close=False)
    first = Results("r", "trainer", settings=settings)
    await first.ack(*(await take(first, 6)))
    await first.close()
    # When another consumer comes
    await close(run.connection, "r")
    late = Results("r", "late", settings=settings)
    found = [rollout.id async for rollout in late]
    # Then it sees the other four, and knows
    assert late.missed == 6
    assert found == [f"r.{i}.0" for i in range(6, 10)]
    # And it is told again when it comes again
    again = Results("r", "late", settings=settings)
    await again.start()
    assert again.missed == 6
    await again.close()


async def test_a_group_of_which_a_member_was_trimmed_is_flagged(pairs, settings):
    # Given a consumer of single rollouts that has acknowledged half of a group
    await pairs.enqueue(1)
    await pairs.admit()
    await pairs.end("r.0.0")
    first = Results("r", "trainer", settings=settings)
    await first.ack(*(await take(first, 1)))
    await first.close()
    # When a consumer of groups comes late
    await pairs.end("r.0.1")
    await close(pairs.connection, "r")
    (group,) = await drain(settings, "late", "group")
    # Then it does not take the rest for the whole
    assert (group.complete, [rollout.sample for rollout in group.rollouts]) == (False, [1])


async def test_an_iteration_that_was_broken_off_goes_on_where_it_was_left(run, settings):
    await run.finish(10)
    results = Results("r", "trainer", settings=settings)
    first = await take(results, 3)
    rest = [rollout async for rollout in results]
    await results.ack(*first, *rest)
    assert [rollout.id for rollout in first + rest] == [f"r.{i}.0" for i in range(10)]
    assert await state(run) == "done"
    await results.close()


WARNING = "consumer 'trainer' of run 'r' ends with {} rollouts that were delivered and not acknowledged"


@pytest.mark.parametrize("how", ["closed", "forgotten"])
async def test_what_was_not_acknowledged_is_warned_of_when_the_consumer_ends(run, settings, caplog, how):
    # Given a trainer that was given three of ten rollouts, which it has read, and acknowledged one
    await run.finish(10)
    results = Results("r", "trainer", settings=settings)
    first = await take(results, 3)
    await results.ack(first[0])
    assert not caplog.text
    # When it is closed, or just forgotten
    if how == "closed":
        await results.close()
        await results.close()
    del results
    gc.collect()
    # Then it is told once how many come again, and what to do
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert WARNING.format(2) in caplog.text
    assert "call .ack(item) once an item is used" in caplog.text


async def test_members_of_a_group_that_is_not_whole_were_not_delivered(pairs, settings, caplog):
    await pairs.enqueue(2)
    await pairs.admit()
    await pairs.end("r.0.0", "r.1.0", "r.1.1")
    results = Results("r", "trainer", "group", settings)
    await take(results, 1)
    await results.close()
    assert WARNING.format(2) in caplog.text


async def test_what_is_acknowledged_after_the_loop_is_not_warned_of(run, settings, caplog):
    await run.finish(10)
    results = Results("r", "trainer", settings=settings)
    everything = [rollout async for rollout in results]
    await results.ack(*everything)
    await results.close()
    del results
    gc.collect()
    assert not caplog.text


async def test_every_key_of_a_done_run_has_a_ttl(run, settings, no_leaks):
    await run.finish(5)
    await run.connection.run(scripts.declare_consumer("r", "late"))
    await drain(settings, "late")
    assert await state(run) == "closed"
    await drain(settings)
    assert await state(run) == "done"
    # A consumer that comes even later changes nothing of that
    assert await drain(settings, "later") == []


async def test_a_run_that_is_closed_after_all_was_acknowledged_is_done_when_the_iteration_ends(run, settings, no_leaks):
    await run.finish(3, close=False)
    draining = asyncio.create_task(drain(settings))
    while await length(run):
        await asyncio.sleep(0.02)
    assert await state(run) == "open"
    await close(run.connection, "r")
    assert len(await asyncio.wait_for(draining, 5)) == 3
    assert await state(run) == "done"


async def test_a_run_that_is_removed_ends_its_consumers_with_an_error(run, settings):
    await run.finish(2, close=False)
    results = Results("r", "trainer", settings=settings)
    await take(results, 2)
    await run.connection.run(scripts.remove_run("r"))
    with pytest.raises(UnknownName, match="'r' was removed"):
        await results.read()
    await results.close()


@pytest.mark.parametrize(
    ("run_name", "consumer", "unit", "says"),
    [
        ("nowhere", "trainer", "rollout", "no run 'nowhere'"),
        ("r", "trainer", "batch", "use 'rollout' or 'group'"),
        ("r", "", "rollout", "use 1 to 100 letters"),
        ("r", "a b", "rollout", "use 1 to 100 letters"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(settings, run_name, consumer, unit, says):
    with pytest.raises(UsageError, match=says):
        next(iter(consume(run_name, consumer, unit, settings)))


async def test_after_a_roll_back_nothing_is_delivered_twice_and_the_loss_is_told(settings, run, caplog):
    redis = Redis.from_url(settings.redis_url)
    # Given a trainer that was given six rollouts and has acknowledged four of them
    await run.enqueue(8)
    await run.admit()
    await run.end("r.0.0", "r.1.0")
    results = Results("r", "trainer", settings=settings)
    first = await take(results, 2)
    await results.ack(first[0])
    before, live = snapshot(redis), list(run.live)
    await run.end("r.2.0", "r.3.0", "r.4.0", "r.5.0")
    second = await take(results, 4)
    await results.ack(first[1], *second[:2])
    # When Redis goes back to where two had ended, and the others end again in another order
    roll_back(redis, before)
    cut(redis)
    run.live = live
    await run.end("r.7.0", "r.5.0", "r.4.0", "r.3.0", "r.2.0", "r.6.0")
    await close(run.connection, "r")
    # Then the trainer gets only what it did not have
    third = await take(results, 2)
    assert [rollout.id for rollout in third] == ["r.7.0", "r.6.0"]
    assert results.rolled_back == 4
    assert "Redis lost the last 4 rollouts" in caplog.text
    # And what it had acknowledged is acknowledged, and what it had not is when it does
    assert await run.connection.run(scripts.consumer_lag("r")) == {"trainer": 4}
    await results.ack(*second, *third)
    assert await run.connection.run(scripts.consumer_lag("r")) == {"trainer": 0}
    assert await state(run) == "done"
    await results.close()


@pytest.mark.parametrize("kept", [0, 1], ids=["whole", "of which a file has a member"])
async def test_after_a_roll_back_a_group_comes_whose_member_ends_last_and_was_delivered_before(settings, kept):
    redis = Redis.from_url(settings.redis_url)
    async with linked(settings) as connection:
        pairs = Pretender(connection, config(samples=2 + kept))
        await pairs.create("trainer")
        if kept:
            await connection.send("SADD", keys.skip("r"), "r.0.2")
        await pairs.enqueue(1)
        await pairs.admit()
        # Given a consumer of groups that has one member of a group
        before, live = snapshot(redis), list(pairs.live)
        await pairs.end("r.0.1")
        results = Results("r", "trainer", "group", settings)
        waiting = asyncio.ensure_future(anext(aiter(results)))
        async with asyncio.timeout(5):
            while not (await connection.send("XPENDING", keys.results("r"), "trainer"))[0]:
                await asyncio.sleep(0.02)
        # When Redis loses that, and the same member ends again, as the last one
        roll_back(redis, before)
        cut(redis)
        pairs.live = live
        await pairs.end("r.0.0", "r.0.1")
        # Then the group comes, and the run does not wait for its consumer
        group = await asyncio.wait_for(waiting, 5)
        assert ([rollout.sample for rollout in group.rollouts], group.complete) == ([0, 1], not kept)
        await close(connection, "r")
        await results.ack(group)
        assert await state(pairs) == "done"
        await results.close()


# Members.


async def read(results: Results, count: int) -> list:
    """The next few rollouts, and what was delivered before."""
    found = await results.unacknowledged()
    while len(found) < count:
        found += await results.read(50) or []
    return found


async def test_the_newest_process_of_a_member_is_the_member_and_the_one_before_can_neither_read_nor_acknowledge(run, settings):
    await run.finish(4, close=False)
    first = Results("r", "trainer", settings=settings)
    await first.start()
    four = await read(first, 4)
    # When another process becomes the member
    second = Results("r", "trainer", settings=settings)
    await second.start()
    # Then what the first one had is the second's, and not acknowledged by the first
    with pytest.raises(MemberReplaced, match="another process has become its member '0'"):
        await first.acknowledge(four)
    assert [rollout.id for rollout in await read(second, 4)] == [rollout.id for rollout in four]
    # And what a read of the first takes, which waited at the server then, is not lost: the second gets it
    await run.finish(1, close=False)
    stream = keys.results("r")
    assert await run.connection.send("XREADGROUP", "GROUP", "trainer", "0", "STREAMS", stream, ">")
    assert [rollout.id for rollout in await second.read(50)] == ["r.4.0"]
    with pytest.raises(MemberReplaced):
        await first.read(50)
    await second.close()
    await first.close()


async def test_members_of_a_consumer_share_its_rollouts_and_the_replacement_of_one_leaves_the_others(run, settings):
    await run.finish(6)
    ranks = [Results("r", "trainer", settings=settings, member=name) for name in ("0", "1")]
    for rank in ranks:
        await rank.start()
    parts = [await rank._streams[0]._fresh(await rank._streams[0]._take(">", None)) for rank in ranks[:1]]
    assert len(parts[0]) == 6
    # Given that rank 0 has all, and is replaced
    again = Results("r", "trainer", settings=settings, member="0")
    await again.start()
    # Then rank 1 goes on, and the new rank 0 has what the old one had
    assert await ranks[1].read(50) is None
    await again.acknowledge(await read(again, 6))
    assert await state(run) == "done"
    for results in (*ranks, again):
        await results.close()


def test_groups_come_to_one_member_only():
    with pytest.raises(UsageError, match="groups come whole to one member only"):
        Results("r", "trainer", "group", member="1")


async def test_a_member_whose_epoch_redis_has_lost_becomes_the_member_again(run, settings):
    redis = Redis.from_url(settings.redis_url)
    await run.finish(2, close=False)
    before = snapshot(redis)
    results = Results("r", "trainer", settings=settings)
    await results.start()
    two = await read(results, 2)
    roll_back(redis, before)
    cut(redis)
    # It reads again, and acknowledges what it has, as if nothing had happened
    assert await results.read(50) == []
    await results.acknowledge(two)
    assert await run.connection.run(scripts.consumer_lag("r")) == {"trainer": 0}
    await results.close()


async def test_a_run_of_the_same_name_is_no_roll_back(run, settings):
    await run.finish(2, close=False)
    results = Results("r", "trainer", settings=settings)
    await results.start()
    await read(results, 2)
    await run.connection.run(scripts.remove_run("r"))
    await Pretender(run.connection, config(created=2.0)).create("trainer")
    with pytest.raises(UnknownName, match="was removed, and another one has its name"):
        await results.read(50)
    await results.close()


async def test_an_entry_whose_id_comes_again_after_a_fail_over_is_not_acknowledged_for_another_rollout(run, settings):
    redis = Redis.from_url(settings.redis_url)
    # Given a trainer that has one rollout
    await run.enqueue(2)
    await run.admit()
    before = snapshot(redis)
    await run.end("r.0.0")
    results = Results("r", "trainer", settings=settings)
    await results.start()
    (first,) = await read(results, 1)
    stream = keys.results("r")
    ((entry, fields),) = redis.xrange(stream)
    # When Redis comes back without it, and a slower clock gives its entry's id to the other rollout
    roll_back(redis, before)
    cut(redis)
    fields[b"b"] = fields[b"b"].replace(b"r.0.0", b"r.1.0")
    redis.xadd(stream, fields | {b"r": b"r.1.0"}, id=entry)
    # Then the trainer gets that one, and acknowledging the first does not acknowledge it
    (second,) = await read(results, 1)
    assert (second.id, second.entry) == ("r.1.0", first.entry)
    await results.acknowledge([first])
    assert redis.xpending(stream, "trainer")["pending"] == 1
    await results.acknowledge([second])
    assert redis.xpending(stream, "trainer")["pending"] == 0
    await results.close()
