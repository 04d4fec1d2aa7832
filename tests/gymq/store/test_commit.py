"""The commit script: a step is applied as a whole, or it is stale, or it must be decided again."""

from __future__ import annotations

import json

import pytest

from gymq.store import scripts
from gymq.store.runs import RunConfig
from tests.support.rollouts import Pretender, address
from tests.support.shard import keys

RID = address("r.0.0")
APPLIED, STALE, CONFLICT = scripts.CommitOutcome.APPLIED, scripts.CommitOutcome.STALE, scripts.CommitOutcome.CONFLICT


@pytest.fixture
async def run(connection):
    """A run of one sample a task, whose first rollout is admitted."""
    pretender = Pretender(connection, RunConfig("r", "weather", "tool", "scripted"))
    await pretender.create("sink")
    await pretender.enqueue(1)
    await pretender.admit()
    return pretender


@pytest.fixture
async def mail(connection):
    """Mail that a worker has taken: its stream and id."""
    stream = keys.mailbox("agent")
    await connection.send("XGROUP CREATE", stream, keys.GROUP, "$", "MKSTREAM")
    id_ = await connection.send("XADD", stream, "*", "r", RID, "v", 0)
    await connection.send("XREADGROUP", "GROUP", keys.GROUP, "w", "STREAMS", stream, ">")
    return stream, id_


def step(version=0, *, rid=RID, mail=("", ""), turns=(), sends=(), due=5, **fields):
    sends = [scripts.Send(*send) for send in sends]
    return scripts.CommitStep(rid, version, *mail, messages=turns, sends=sends, due=due, **fields)


def final(rid=RID, samples=1, status="completed"):
    run, row, _ = rid.split(".")
    return scripts.RolloutEnd(run, int(row), samples, status, b'{"rollout_id":"%s"' % rid.encode())


async def commit(connection, *steps):
    return await connection.run(scripts.commit(list(steps)))


async def dump(connection) -> dict:
    """All that Redis holds."""
    found = {}
    for key in sorted(await connection.send("KEYS", "*")):
        found[key] = await connection.send("DUMP", key)
    return found


async def pending(connection) -> int:
    return (await connection.send("XPENDING", keys.mailbox("agent"), keys.GROUP))[0]


async def results(connection, run="r") -> list[dict]:
    return [dict(zip(f[::2], f[1::2], strict=True)) for _, f in await connection.send("XRANGE", keys.results(run), "-", "+")]


async def test_an_applied_step_writes_all_that_it_decided_and_acknowledges_its_mail(connection, run, mail):
    # When a step is committed on the version that is stored
    one = step(
        mail=mail, fields=["s", b"state", "e", b"memory"], turns=[b'{"a":1}', b'{"b":2}'], records=[b'{"c":3}'],
        sends=[("model:m", b"first"), ("resource:e", b"second")], due=77_000,
    )  # fmt: skip
    assert await commit(connection, one) == [APPLIED]
    # Then state, messages, records, calls and the due time stand there, and the mail is gone
    flat = await connection.send("HGETALL", keys.rollout(RID))
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    assert fields == {b"v": b"1", b"s": b"state", b"e": b"memory", b"c1.0": b"2", b"c1.1": b"2", b"l": b"2"}
    assert await connection.send("LRANGE", keys.messages(RID), 0, -1) == [b'{"a":1}', b'{"b":2}']
    assert await connection.send("LRANGE", keys.calls(RID), 0, -1) == [b'{"c":3}']
    seconds, _ = await connection.send("TIME")
    assert float(await connection.send("ZSCORE", keys.due, RID)) / 1000 == pytest.approx(int(seconds) + 77, abs=5)
    assert (await connection.send("XRANGE", keys.mailbox("model:m"), "-", "+"))[0][1] == [b"c", b"first"]
    assert (await connection.send("XRANGE", keys.mailbox("resource:e"), "-", "+"))[0][1] == [b"c", b"second"]
    assert await pending(connection) == 0
    assert await connection.send("XLEN", keys.mailbox("agent")) == 0


@pytest.mark.parametrize("ended", [False, True])
async def test_a_stale_step_acknowledges_its_mail_and_does_nothing_else(connection, run, mail, ended):
    # Given a rollout that has gone on, or has ended, since the step was decided
    assert await commit(connection, step(final=final() if ended else None, turns=[b"1"])) == [APPLIED]
    # When the step is committed
    late = step(mail=mail, fields=["s", b"late"], turns=[b"2"], records=[b"3"], sends=[("model:m", b"late")])
    mailbox = keys.mailbox("agent").encode()
    before = {key: value for key, value in (await dump(connection)).items() if key != mailbox}
    outcome = await commit(connection, late)
    # Then only its mail is gone
    assert outcome == [STALE]
    assert await pending(connection) == 0
    after = {key: value for key, value in (await dump(connection)).items() if key != mailbox}
    assert after == before


@pytest.mark.parametrize(("stored", "decided", "must"), [(1, 0, 1), (0, 1, 0), (0, 1, 1)])
async def test_a_conflict_changes_nothing_not_even_its_mail(connection, run, mail, stored, decided, must):
    # Given a step that must happen but was decided on an older version, or one decided on a version that was never stored
    await connection.send("HSET", keys.rollout(RID), "v", stored)
    before = await dump(connection)
    # When it is committed
    outcome = await commit(connection, step(decided, mail=mail, turns=[b"1"], sends=[("m", b"x")], must=must))
    # Then it is to be decided again
    assert outcome == [CONFLICT]
    assert await dump(connection) == before
    assert await pending(connection) == 1


async def test_a_cancellation_of_an_ended_rollout_is_stale(connection, run, mail):
    await commit(connection, step(final=final()))
    assert await commit(connection, step(7, mail=mail, final=final(status="cancelled"), must=True)) == [STALE]
    assert await pending(connection) == 0
    assert len(await results(connection)) == 1


async def test_a_commit_that_is_sent_twice_is_applied_once(connection, run, mail):
    one = step(mail=mail, fields=["s", b"state"], turns=[b"1"], records=[b"2"], sends=[("model:m", b"call")])
    assert await commit(connection, one) == [APPLIED]
    before = await dump(connection)
    assert await commit(connection, one) == [STALE]
    assert await dump(connection) == before


async def test_a_final_commit_that_is_sent_twice_ends_the_rollout_once(connection, run):
    assert await commit(connection, step(final=final())) == [APPLIED]
    assert await commit(connection, step(final=final())) == [STALE]
    assert len(await results(connection)) == 1
    assert await connection.send("HMGET", keys.run("r"), "ended", "n:completed") == [b"1", b"1"]


async def test_each_step_of_a_batch_has_its_own_outcome_in_order(connection, run):
    # Given three rollouts at version 0, 1 and 1
    await run.enqueue(2)
    await run.admit()
    await commit(connection, step(rid=address("r.1.0")), step(rid=address("r.2.0")))
    # When steps decided on version 0 are committed together
    outcomes = await commit(
        connection,
        step(rid=address("r.1.0")),
        step(rid=address("r.2.0"), must=True),
        step(rid=address("r.0.0"), turns=[b"1"]),
        step(rid="gone.0.0"),
    )
    # Then each met what is stored
    assert outcomes == [STALE, CONFLICT, APPLIED, STALE]
    assert await connection.send("LLEN", keys.messages(RID)) == 1


async def test_the_end_of_a_rollout_joins_its_record_and_deletes_all_its_keys(connection, run):
    # Given a rollout with messages, records and a pending call
    await commit(connection, step(turns=[b'{"role":"user"}'], records=[b'{"call":"1.0"}'], sends=[("model:m", b"call")]))
    # When it ends
    end = step(1, turns=[b'{"role":"assistant"}'], records=[b'{"call":"2.0"}'], final=final())
    assert await commit(connection, end) == [APPLIED]
    # Then its record is whole and stands in the results
    (entry,) = await results(connection)
    assert (entry[b"r"], entry[b"l"]) == (b"r.0.0", b"1")
    assert json.loads(entry[b"b"]) == {
        "rollout_id": RID,
        "seq": 1,
        "messages": [{"role": "user"}, {"role": "assistant"}],
        "calls": [{"call": "1.0"}, {"call": "2.0"}],
    }
    # and nothing is left of it but that
    left = await connection.send(
        "EXISTS", keys.rollout(RID), keys.messages(RID), keys.calls(RID), keys.live("r"), keys.due, keys.rows("r")
    )
    assert left == 0


async def test_a_group_keeps_its_row_until_its_last_member_ends(connection):
    # Given a group of three
    run = Pretender(connection, RunConfig("r", "weather", "tool", "scripted", samples=3))
    await run.create()
    await run.enqueue(1)
    await run.admit()
    lasts, rows, partial = [], [], []
    # When its members end, in any order
    for sample in (2, 0, 1):
        await commit(connection, step(rid=address(f"r.0.{sample}"), final=final(f"r.0.{sample}", 3)))
        lasts.append((await results(connection))[-1][b"l"])
        rows.append(await connection.send("HLEN", keys.rows("r")))
        partial.append(await connection.send("HGET", keys.run("r"), "partial"))
    # Then only the last one closes it
    assert lasts == [b"0", b"0", b"1"]
    assert rows == [1, 1, 0]
    assert partial == [b"1", b"2", b"0"]
    assert await connection.send("EXISTS", keys.groups("r")) == 0


async def test_seq_counts_the_rollouts_of_a_run_in_the_order_of_their_ends(connection, run):
    await run.enqueue(2)
    await run.admit()
    for rid in ("r.1.0", "r.0.0", "r.2.0"):
        await commit(connection, step(rid=address(rid), final=final(rid)))
    ends = [json.loads(entry[b"b"]) for entry in await results(connection)]
    assert [(end["rollout_id"], end["seq"]) for end in ends] == [("r.1.0", 1), ("r.0.0", 2), ("r.2.0", 3)]


async def test_calls_that_are_given_up_are_no_longer_pending_and_their_replies_find_nothing(connection, run):
    # Given three calls of which one is answered and one has begun
    sends = [("resource:e", b"call %d" % n) for n in range(3)]
    await commit(connection, step(sends=sends, fields=["s", b"state", "e", b"memory", "q", b"plan"]))
    await connection.run(scripts.reply([scripts.ReplyEntry(RID, 1, 0, b"reply")]))
    assert await connection.run(scripts.begin_once(RID, 1, 1, "w")) is scripts.OnceOutcome.BEGUN
    # When a step gives them up and sends another
    assert await commit(connection, step(1, sends=[("resource:e", b"verify")], drop=True)) == [APPLIED]
    # Then only that one is pending
    flat = await connection.send("HGETALL", keys.rollout(RID))
    assert dict(zip(flat[::2], flat[1::2], strict=True)) == {
        b"v": b"2", b"s": b"state", b"e": b"memory", b"q": b"plan", b"o1.1": b"w", b"c2.0": b"1",
    }  # fmt: skip
    # and what comes late finds nothing
    late = [scripts.ReplyEntry(RID, 1, n, b"late") for n in (1, 2)]
    assert await connection.run(scripts.reply(late)) == [False, False]
    assert await connection.send("XLEN", keys.mailbox("agent")) == 0


async def test_what_is_due_is_woken_once_and_what_is_gone_is_forgotten(connection, run):
    # Given two rollouts that are due, one that is not, and one that is gone
    await run.enqueue(2)
    await run.admit()
    await commit(connection, step(due=1000), step(rid=address("r.1.0"), due=2000), step(rid=address("r.2.0"), due=9000))
    for n, due in enumerate((1000, 2000, 9000)):
        await connection.send("ZADD", keys.due, due, address(f"r.{n}.0"))
    await connection.send("ZADD", keys.due, 1, "gone.0.0")
    await connection.send("DEL", keys.mailbox("agent"))
    # When two look
    assert [await connection.run(scripts.wake(100, 600, 5000)) for _ in range(2)] == [2, 0]
    # Then each was sent mail once, with its version
    mail = [fields for _, fields in await connection.send("XRANGE", keys.mailbox("agent"), "-", "+")]
    assert mail == [[b"r", rid, b"v", b"1", b"d", b"1"] for rid in (RID.encode(), address("r.1.0").encode())]
    # and is due again if nothing comes of that
    due = await connection.send("ZRANGE", keys.due, 0, -1, "WITHSCORES")
    assert due == [part.encode() for n, at in enumerate(("5600", "5600", "9000")) for part in (address(f"r.{n}.0"), at)]


async def test_a_step_may_append_more_messages_than_luas_stack_holds(connection, run):
    turns = [b'{"n":%d}' % n for n in range(20_000)]
    assert await commit(connection, step(turns=turns)) == [APPLIED]
    assert await connection.send("LRANGE", keys.messages(RID), 0, -1) == turns


async def test_a_turn_may_have_as_many_calls_as_the_machine_sends_at_once(connection, run):
    # When so many calls are sent by one step
    from gymq_workers.agent.tool_turn import MAX_PARALLEL_TOOLS

    sends = [("resource:e", b"call %d" % n) for n in range(MAX_PARALLEL_TOOLS)]
    assert await commit(connection, step(sends=sends)) == [APPLIED]
    # and all are answered in one batch
    replies = [scripts.ReplyEntry(RID, 1, n, b"reply %d" % n) for n in range(MAX_PARALLEL_TOOLS)]
    assert await connection.run(scripts.reply(replies)) == [True] * MAX_PARALLEL_TOOLS
    # Then one mail brings all replies in order
    ((_, fields),) = await connection.send("XRANGE", keys.mailbox("agent"), "-", "+")
    assert fields[5::2] == [b"reply %d" % n for n in range(MAX_PARALLEL_TOOLS)]
