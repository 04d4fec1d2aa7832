"""Tasks: in the ledger, once; and whose rollouts are admitted next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymq.store import runs, scripts
from gymq.store.run_status import read_status
from gymq.wire.ids import place
from gymq.wire.task import Task, decode_task, encode_task
from tests.support.rollouts import acknowledge, address, make_run
from tests.support.shard import keys


async def admit(connection, most: int = 128, skip: int = 2000) -> list[str]:
    """Admit, and name the rollouts that were."""
    box = keys.mailbox("agent")
    done = await connection.run(scripts.admit(most, 4096, skip, 1 << 40, 60_000))
    mail = await connection.send("XRANGE", box, "-", "+")
    await connection.send("DEL", box)
    assert done.admitted == len(mail)
    return [place(fields[1].decode()) for _, fields in mail]


@given(id=st.text(), encoded=st.lists(st.binary()), tools=st.none() | st.binary())
def test_a_task_comes_back_as_it_was_written(id, encoded, tools):
    task = Task(id, "weather", encoded, b'{"answer":4}', b'{"seed":1}', tools)
    assert decode_task(encode_task(task)) == task


def test_a_tasks_fields_are_read_like_those_of_a_row():
    task = Task("t", "weather", [b'{"role":"user","content":"hi"}'], b'{"answer":4}')
    assert (task["answer"], task.get("answer"), task.get("other"), task.get("other", 1)) == (4, 4, None, 1)
    assert task.messages.last.text == "hi"
    with pytest.raises(KeyError):
        task["other"]


# Admission.


async def test_rows_are_admitted_in_order_and_all_samples_of_a_row_follow_each_other(connection):
    await make_run(connection, rows=2, samples=2)
    assert await admit(connection) == ["r.0.0", "r.0.1", "r.1.0", "r.1.1"]


async def test_nothing_is_admitted_twice_however_often_somebody_looks(connection):
    await make_run(connection, rows=5)
    found = [await admit(connection, 2) for _ in range(5)]
    assert found == [["r.0.0", "r.1.0"], ["r.2.0", "r.3.0"], ["r.4.0"], [], []]
    assert await connection.send("SCARD", keys.live("r")) == 5


async def test_a_rollout_begins_at_version_0_with_its_task_in_the_mail_if_that_is_small(connection):
    # Given a small task and a large one
    await make_run(connection)
    await connection.run(scripts.enqueue("r", "chunk", 1000, [b"small", b"x" * 5000]))
    # When they are admitted
    await connection.run(scripts.admit(128, 4096, 2000, 1 << 40, 60_000))
    # Then the large one is to be loaded
    mail = [fields for _, fields in await connection.send("XRANGE", keys.mailbox("agent"), "-", "+")]
    assert mail == [
        [b"r", address("r.0.0").encode(), b"v", b"0", b"t", b"small"],
        [b"r", address("r.1.0").encode(), b"v", b"0"],
    ]
    assert await connection.send("HGETALL", keys.rollout(address("r.1.0"))) == [b"v", b"0"]


async def test_no_more_are_in_flight_than_the_run_has_credits(connection):
    pretender = await make_run(connection, rows=10, concurrency=3)
    assert await pretender.admit() == 3
    assert await pretender.admit() == 0
    await pretender.end("r.1.0")
    assert await pretender.admit() == 1
    assert sorted(pretender.live) == ["r.0.0", "r.2.0", "r.3.0"]


async def test_admission_waits_while_the_consumer_is_behind_by_the_backlog(connection):
    # Given a run of which three finished rollouts may be unread
    pretender = await make_run(connection, rows=10, backlog=3, concurrency=2)
    while await pretender.admit():
        await pretender.end(*pretender.live)
    assert await connection.send("HGET", keys.run("r"), "ended") == b"4"
    # When its consumer acknowledges one, then it is still three behind
    ((_, entries),) = await connection.send("XREADGROUP", "GROUP", "sink", "reader", "STREAMS", keys.results("r"), ">")
    ids = [entry for entry, _ in entries]
    await acknowledge(connection, "r", "sink", [ids.pop()], ttl=100)
    assert await pretender.admit() == 0
    # and when it acknowledges one more, admission goes on
    await acknowledge(connection, "r", "sink", [ids.pop()], ttl=100)
    assert await pretender.admit() == 2


async def test_members_of_incomplete_groups_are_no_backlog(connection):
    # Given groups of four and a backlog of two, and three members of a group that ended
    pretender = await make_run(connection, rows=2, samples=4, backlog=2, concurrency=4)
    await pretender.admit()
    await pretender.end("r.0.0", "r.0.1", "r.0.2")
    # When admission looks, then it goes on: a consumer of groups waits for the fourth
    assert await pretender.admit() == 3
    # and stops once the group is complete
    await pretender.end("r.0.3")
    assert await pretender.admit() == 1  # finishes the group that has begun
    assert await pretender.admit() == 0


async def test_a_group_that_has_begun_is_finished_although_the_backlog_is_full(connection):
    pretender = await make_run(connection, rows=3, samples=2, backlog=1, concurrency=3)
    await pretender.admit()  # r.0.0, r.0.1, r.1.0
    await pretender.end("r.0.0", "r.0.1")
    assert await pretender.admit() == 1
    assert sorted(pretender.live) == ["r.1.0", "r.1.1"]


async def test_runs_are_admitted_fairly_whatever_their_size(connection):
    # Given a large run and a small one that came later
    await make_run(connection, "large", 1000, concurrency=1000)
    await make_run(connection, "small", 10)
    # When admission has room for twenty
    found = await admit(connection, 20)
    # Then both have begun, ten each
    assert sum(rid.startswith("large.") for rid in found) == 10
    assert sum(rid.startswith("small.") for rid in found) == 10


async def test_what_one_run_cannot_use_another_gets(connection):
    await make_run(connection, "narrow", 100, concurrency=2)
    await make_run(connection, "wide", 100)
    found = await admit(connection, 20) + await admit(connection, 20)
    assert sum(rid.startswith("narrow.") for rid in found) == 2
    assert len(found) >= 28


async def test_no_run_starves_when_there_is_room_for_one_at_a_time(connection):
    for name in ("a", "b", "c"):
        await make_run(connection, name, 10)
    found = [rid.split(".")[0] for _ in range(9) for rid in await admit(connection, 1)]
    assert {name: found.count(name) for name in found} == {"a": 3, "b": 3, "c": 3}


async def test_what_a_sink_has_already_is_not_admitted_and_counts_as_ended(connection):
    # Given two groups of two, of which a sink has one whole and half of the other
    pretender = await make_run(connection, rows=2, samples=2)
    await connection.send("SADD", keys.skip("r"), "r.0.0", "r.0.1", "r.1.1")
    # When they are admitted
    assert await admit(connection) == ["r.1.0"]
    # Then the others count as ended, and the row of the whole group is gone
    state = await read_status(connection, "r")
    assert (state.admitted, state.ended, state.live, state.by_status) == (4, 3, 1, {"kept": 3})
    assert await connection.send("HKEYS", keys.rows("r")) == [b"1"]
    # and the member that is done now is its group's last
    pretender.live = ["r.1.0"]
    await pretender.end("r.1.0")
    ((_, fields),) = await connection.send("XRANGE", keys.results("r"), "-", "+")
    assert fields[3] == b"1"
    assert await connection.send("EXISTS", keys.rows("r"), keys.groups("r")) == 0


async def test_many_to_skip_are_passed_over_a_few_at_a_time(connection):
    await make_run(connection, rows=10)
    await connection.send("SADD", keys.skip("r"), *[f"r.{n}.0" for n in range(9)])
    assert await connection.run(scripts.admit(128, 4096, 4, 1 << 40, 60_000)) == scripts.Admitted(0, 4)
    assert await connection.run(scripts.admit(128, 4096, 4, 1 << 40, 60_000)) == scripts.Admitted(0, 4)
    assert await connection.run(scripts.admit(128, 4096, 4, 1 << 40, 60_000)) == scripts.Admitted(1, 1)


async def test_nothing_is_admitted_while_admission_is_paused(connection):
    await make_run(connection, rows=1)
    await connection.send("SET", keys.paused, 1)
    assert await admit(connection) == []
    await connection.send("DEL", keys.paused)
    assert await admit(connection) == ["r.0.0"]


async def test_a_run_is_no_longer_looked_at_when_all_is_admitted_and_it_is_closed(connection):
    await make_run(connection, rows=1)
    await admit(connection)
    assert await connection.send("LRANGE", keys.open, 0, -1) == [b"r"]
    await runs.close(connection, "r")
    await admit(connection)
    assert await connection.send("EXISTS", keys.open) == 0


# The ledger.


async def test_a_chunk_is_written_once_however_often_it_is_sent(connection):
    await make_run(connection)
    assert await connection.run(scripts.enqueue("r", "c1", 100, [b"a", b"b"])) == 2
    assert await connection.run(scripts.enqueue("r", "c1", 100, [b"a", b"b"])) == 0
    assert await connection.run(scripts.enqueue("r", "c2", 100, [b"c"])) == 1
    assert await connection.send("HGETALL", keys.rows("r")) == [b"0", b"a", b"1", b"b", b"2", b"c"]
    # also after the run was closed
    await runs.close(connection, "r")
    assert await connection.run(scripts.enqueue("r", "c1", 100, [b"a", b"b"])) == 0
    assert await connection.run(scripts.enqueue("r", "c3", 100, [b"d"])) is scripts.EnqueueRefusal.CLOSED


async def test_a_full_ledger_takes_nothing_more_until_rows_are_done(connection):
    pretender = await make_run(connection)
    assert await connection.run(scripts.enqueue("r", "c1", 3, [b"task"] * 5)) == 5  # an empty one takes any chunk
    assert await connection.run(scripts.enqueue("r", "c2", 3, [b"task"])) is scripts.EnqueueRefusal.FULL
    await pretender.admit()
    await pretender.end(*pretender.live)
    assert await connection.run(scripts.enqueue("r", "c2", 3, [b"task"])) == 1


@pytest.mark.parametrize("state", ["closed", "cancelled", "removed"])
async def test_a_run_that_takes_no_rows_refuses_them(connection, state):
    await make_run(connection)
    await {"closed": runs.close, "cancelled": runs.cancel, "removed": runs.remove}[state](connection, "r")
    assert await connection.run(scripts.enqueue("r", "c", 100, [b"task"])) is scripts.EnqueueRefusal.CLOSED
    assert await connection.send("EXISTS", keys.rows("r")) == 0
