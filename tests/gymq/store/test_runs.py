"""Runs: their names and their life, from the first row to the last key."""

from __future__ import annotations

import pytest
from redis import Redis

from gymq.errors import RunClosed, UnknownName, UsageError
from gymq.store import runs, scripts
from gymq.store.run_status import read_status
from gymq.store.runs import RunConfig
from gymq.wire.ids import PartId, place
from tests.support.redis_server import leaked_keys
from tests.support.rollouts import acknowledge, address, make_run
from tests.support.shard import keys


async def test_a_run_is_found_again_as_it_was_created_and_its_bounds_may_change(connection):
    assert await runs.create(connection, RunConfig("r", "e", "a", "m", concurrency=5))
    assert not await runs.create(connection, RunConfig("r", "e", "a", "m", concurrency=9))
    assert await connection.send("HGET", keys.run("r"), "concurrency") == b"9"
    with pytest.raises(UsageError, match="exists with samples=1, not 2"):
        await runs.create(connection, RunConfig("r", "e", "a", "m", samples=2))


@pytest.mark.parametrize("name", ["", "a.b", "-a", "a b", "a" * 101, "a\n", "ü", "a:b", "{0}"])
def test_a_name_that_would_not_fit_into_keys_and_ids_is_refused(name):
    with pytest.raises(UsageError, match="use 1 to 100 letters"):
        runs.check_name(name)


@pytest.mark.parametrize("name", ["a", "0", "a_b-C9", "a" * 100])
def test_names_of_letters_digits_and_dashes_are_taken(name):
    runs.check_name(name)


async def test_closing_and_reopening(connection):
    await make_run(connection)
    await runs.close(connection, "r")
    await runs.close(connection, "r")
    assert (await read_status(connection, "r")).state == "closed"
    await runs.reopen(connection, "r")
    assert (await read_status(connection, "r")).state == "open"
    await runs.cancel(connection, "r")
    for change in (runs.close, runs.reopen):
        with pytest.raises(RunClosed):
            await change(connection, "r")


async def test_groups_and_rollouts_are_cancelled_in_flight_or_as_they_begin(connection):
    # Given a run of four groups of two, three of whose rollouts have begun, and one has ended
    pretender = await make_run(connection, rows=4, samples=2, concurrency=3)
    await pretender.admit()
    await pretender.end("r.0.0")
    # When the rest of the first group is cancelled, a group that has half begun, and a rollout that has not
    assert await runs.cancel_some(connection, "r", [PartId(0), PartId(1), PartId(2, 1), PartId(1, 0)]) == (3, 2)
    mail = await connection.send("XRANGE", keys.mailbox("agent"), "-", "+")
    assert [(fields[1], fields[5]) for _, fields in mail] == [(address(rid).encode(), b"group") for rid in ("r.0.1", "r.1.0")]
    for entry, _ in mail:
        await connection.send("XDEL", keys.mailbox("agent"), entry)
    # Then those that had not begun are told so as they begin, and the others are not
    await pretender.end("r.0.1", "r.1.0", status="cancelled")
    assert await connection.run(scripts.admit(128, 4096, 2000, 1 << 40, 60_000)) == scripts.Admitted(3, 0)
    begun = [fields for _, fields in await connection.send("XRANGE", keys.mailbox("agent"), "-", "+")]
    found = [(place(fields[1].decode()), b"x" in fields) for fields in begun]
    assert found == [("r.1.1", True), ("r.2.0", False), ("r.2.1", True)]
    assert await connection.send("EXISTS", keys.cancelled("r")) == 0


@pytest.mark.parametrize(
    ("which", "error", "says"),
    [
        (PartId(0), RunClosed, "group r.0 has ended"),
        (PartId(0, 1), RunClosed, "rollout r.0.1 has ended"),
        (PartId(1, 2), UnknownName, "no rollout r.1.2"),
        (PartId(9), UnknownName, "no group r.9"),
    ],
)
async def test_what_has_ended_or_does_not_exist_cannot_be_cancelled_and_then_nothing_is(connection, which, error, says):
    pretender = await make_run(connection, rows=3, samples=2, concurrency=2)
    await pretender.admit()
    await pretender.end("r.0.0", "r.0.1")
    await pretender.admit()
    with pytest.raises(error, match=says):
        await runs.cancel_some(connection, "r", [PartId(1), which])
    assert await connection.send("XLEN", keys.mailbox("agent")) == 0
    assert await connection.send("EXISTS", keys.cancelled("r")) == 0


async def test_a_run_that_has_ended_cannot_be_cancelled(connection):
    with pytest.raises(UnknownName):
        await runs.cancel_some(connection, "nosuch", [PartId(1)])
    await make_run(connection, rows=1)
    await runs.cancel(connection, "r")
    with pytest.raises(RunClosed, match="is cancelled"):
        await runs.cancel_some(connection, "r", [PartId(0)])
    await connection.send("HSET", keys.run("r"), "state", "done")
    with pytest.raises(RunClosed, match="is done"):
        await runs.cancel(connection, "r")
    with pytest.raises(RunClosed, match="is done"):
        await runs.pause(connection, "r", True)
    await runs.remove(connection, "r")


async def test_a_run_that_is_paused_admits_nothing_until_it_is_resumed(connection):
    pretender, other = await make_run(connection, rows=2), await make_run(connection, "other", rows=2)
    await runs.pause(connection, "r", True)
    assert await pretender.admit() == 2
    assert pretender.live == ["other.0.0", "other.1.0"]
    assert (await read_status(connection, "r")).paused and not (await read_status(connection, "other")).paused
    await runs.pause(connection, "r", False)
    assert await other.admit() == 2


async def test_cancelling_tells_the_agents_of_each_rollout_in_flight_and_admits_no_more(connection):
    pretender = await make_run(connection, rows=5, concurrency=2)
    await pretender.admit()
    assert await runs.cancel(connection, "r") == 2
    assert await connection.send("EXISTS", keys.open) == 0
    mail = [fields for _, fields in await connection.send("XRANGE", keys.mailbox("agent"), "-", "+")]
    assert sorted(place(fields[1].decode()) for fields in mail) == ["r.0.0", "r.1.0"]
    assert all(fields[2:] == [b"v", b"0", b"x", b"run"] for fields in mail)
    await pretender.end("r.0.0", status="cancelled")
    assert await connection.run(scripts.admit(128, 4096, 2000, 1 << 40, 60_000)) == scripts.Admitted(0, 0)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_run_is_done_when_all_has_ended_and_all_consumers_have_all_and_then_everything_has_a_ttl(
    connection, redis_url, cancelled
):
    # Given a run with two consumers, whose rollouts have ended but for one
    pretender = await make_run(connection, rows=3, samples=2, concurrency=4)
    await connection.run(scripts.declare_consumer("r", "trainer"))
    await pretender.admit()
    *ended, last = list(pretender.live)
    await pretender.end(*ended)
    if cancelled:
        await runs.cancel(connection, "r")

    async def acknowledge_new(consumer: str) -> int:
        reply = await connection.send("XREADGROUP", "GROUP", consumer, "reader", "STREAMS", keys.results("r"), ">")
        return await acknowledge(connection, "r", consumer, [entry for entry, _ in (reply[0][1] if reply else ())], ttl=100)

    # When the others are acknowledged, then it is not done
    assert [await acknowledge_new("sink"), await acknowledge_new("trainer")] == [0, 0]
    # nor when the last one has ended and only one consumer has it
    await pretender.end(last)
    if not cancelled:
        while await pretender.admit():
            await pretender.end(*pretender.live)
        await runs.close(connection, "r")
    assert await acknowledge_new("sink") == 0
    assert (await read_status(connection, "r")).state == ("cancelled" if cancelled else "closed")
    # but when all have it
    assert await acknowledge_new("trainer") == 1
    assert (await read_status(connection, "r")).state == "done"
    await connection.send("DEL", keys.mailbox("agent"))
    for key in await connection.send("KEYS", "*"):
        assert 0 < await connection.send("TTL", key) <= 100, key


@pytest.mark.parametrize("slow", ["a-slow", "z-slow"])
async def test_what_all_consumers_have_acknowledged_is_trimmed_and_nothing_else(connection, slow):
    # Given five results and two consumers
    pretender = await make_run(connection)
    await connection.run(scripts.declare_consumer("r", slow))
    await pretender.finish(5)
    ids = {}
    for consumer in ("sink", slow):
        reply = await connection.send("XREADGROUP", "GROUP", consumer, "reader", "STREAMS", keys.results("r"), ">")
        ids[consumer] = [entry for entry, _ in reply[0][1]]
    # When one acknowledges all, and the slow one all but the second
    await acknowledge(connection, "r", "sink", ids["sink"], ttl=100)
    assert await connection.send("XLEN", keys.results("r")) == 5
    first, second, *rest = ids[slow]
    await acknowledge(connection, "r", slow, [first, *rest], ttl=100)
    # Then what stands behind the second stays
    assert [entry for entry, _ in await connection.send("XRANGE", keys.results("r"), "-", "+")] == [second, *rest]
    # and acknowledging twice counts once
    await acknowledge(connection, "r", slow, [first, *rest], ttl=100)
    assert (await read_status(connection, "r")).unread == {"sink": 0, slow: 1}


async def test_removing_a_run_leaves_nothing_of_it(connection, redis_url):
    # Given a run with rollouts in flight, ended ones, half a group, rows to come, a skip list and a consumer
    pretender = await make_run(connection, rows=10, samples=2, concurrency=4)
    await connection.send("SADD", keys.skip("r"), "r.9.0")
    await pretender.admit()
    await pretender.end("r.0.0", "r.0.1", "r.1.0")
    sends = [scripts.Send("model:m", b"call")]
    step = scripts.CommitStep(address("r.1.1"), 0, fields=["s", b"x"], messages=[b"1"], records=[b"2"], sends=sends, due=5)
    await connection.run(scripts.commit([step]))
    other = await make_run(connection, "other", 1)
    before = await runs.names(connection)
    assert set(before) == {"r", "other"}
    # When it is removed
    await runs.remove(connection, "r")
    # Then only mail is left, which is stale, and the other run
    assert await runs.names(connection) == ["other"]
    left = {key for key in await connection.send("KEYS", "*") if b"r.1.1" in key or key.endswith(b":r")}
    assert left == set()
    assert await connection.send("ZCARD", keys.due) == 0
    assert await connection.send("LRANGE", keys.open, 0, -1) == [b"other"]
    await runs.remove(connection, "other")
    await connection.send("DEL", keys.mailbox("agent"), keys.mailbox("model:m"))
    with Redis.from_url(redis_url) as client:
        assert leaked_keys(client) == []
    assert other.live == []
    with pytest.raises(UnknownName):
        await read_status(connection, "r")


async def test_under_a_cap_a_rollout_that_failed_keeps_its_credit(connection):
    # Given a run whose rollouts all fail
    pretender = await make_run(connection, rows=20, concurrency=4)
    await runs.bound(connection, "r", 4, None)
    assert await pretender.admit() == 4
    await pretender.end("r.0.0", "r.1.0", status="failed")
    # Then those that failed make no room, one that succeeded does
    assert await pretender.admit() == 0
    await pretender.end("r.2.0")
    assert await pretender.admit() == 1
    assert (await read_status(connection, "r")).bounded
    # A later command's cap counts from there on, a stop admits nothing and says why, and without them all is as before
    await runs.bound(connection, "r", 3, None)
    await pretender.end("r.3.0", status="failed")
    assert await pretender.admit() == 1
    await runs.stop(connection, "r", "all failed alike")
    await pretender.end("r.4.0")
    assert await pretender.admit() == 0
    assert (await read_status(connection, "r")).stopped == "all failed alike"
    await runs.bound(connection, "r", None, None)
    assert await pretender.admit() == 3
    status = await read_status(connection, "r")
    assert (status.bounded, status.stopped) == (False, "")


async def test_under_a_quota_no_rollout_that_ended_makes_room(connection):
    pretender = await make_run(connection, rows=20, concurrency=4)
    await pretender.admit()
    await pretender.end("r.0.0")
    await runs.bound(connection, "r", None, 6)
    assert await pretender.admit() == 1
    await pretender.end(*pretender.live)
    assert await pretender.admit() == 2
    await pretender.end(*pretender.live)
    assert await pretender.admit() == 0


async def test_a_run_that_is_done_is_not_listed_again_by_who_creates_it_again(connection, no_leaks):
    # Given a run that is done
    pretender = await make_run(connection)
    await pretender.finish(1)
    ((_, ((entry, _),)),) = await connection.send("XREADGROUP", "GROUP", "sink", "x", "STREAMS", keys.results("r"), ">")
    assert await acknowledge(connection, "r", "sink", [entry]) is scripts.AckOutcome.RUN_DONE
    # When it is created once more
    assert await runs.create(connection, pretender.config) is False
    # Then it is no run that goes on, and its name lapses with it
    assert await runs.names(connection) == []
    assert await connection.send("TTL", keys.run("r")) > 0


async def test_a_run_that_is_removed_while_it_is_created_again_is_new(connection, monkeypatch):
    await runs.create(connection, RunConfig("r", "weather", "tool", "scripted", created=1.0))
    run = connection.run

    async def remove_between(call):
        reply = await run(call)
        if call.name == "create_run":
            monkeypatch.setattr(connection, "run", run)
            await runs.remove(connection, "r")
        return reply

    monkeypatch.setattr(connection, "run", remove_between)
    assert await runs.create(connection, RunConfig("r", "weather", "tool", "scripted", created=2.0)) is True
    assert (await runs.load_config(connection, "r")).created == 2.0
