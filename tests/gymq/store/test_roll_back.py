"""Redis loses what it had confirmed: what was decided before and is sent again destroys nothing that is there again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from gymq.store import scripts
from gymq.store.runs import RunConfig
from gymq.store.scripts import CommitOutcome, ReplyOutcome
from tests.support.redis_server import roll_back, snapshot
from tests.support.rollouts import Pretender
from tests.support.shard import keys

AGENT, MODEL = keys.mailbox("agent"), keys.mailbox("model:m")


@pytest.fixture
def remember(redis_url) -> Callable[[], Callable[[], None]]:
    """Takes a snapshot of the server, and returns what makes it lose all that followed."""

    def take() -> Callable[[], None]:
        with Redis.from_url(redis_url) as client:
            found = snapshot(client)
        return lambda: roll_back(Redis.from_url(redis_url), found)

    return take


@pytest.fixture
async def rid(connection) -> bytes:
    """A rollout that was admitted, whose mail nobody has taken."""
    for stream in (AGENT, MODEL):
        await connection.send("XGROUP CREATE", stream, keys.GROUP, "0", "MKSTREAM")
    run = Pretender(connection, RunConfig("r", "weather", "tool", "m"))
    await run.create("sink")
    await run.enqueue(1)
    await connection.run(scripts.admit(1, 4096, 10, 1 << 40, 60_000))
    return (await connection.send("XRANGE", AGENT, "-", "+"))[0][1][1]


async def take(connection, stream: str) -> tuple[str, bytes]:
    """Take the one message of a stream, and return where it is."""
    ((_, ((id_, _),)),) = await connection.send("XREADGROUP", "GROUP", keys.GROUP, "w", "STREAMS", stream, ">")
    return stream, id_


async def commit(connection, *steps) -> CommitOutcome:
    (outcome,) = await connection.run(scripts.commit(steps))
    return outcome


async def asked(connection, rid: bytes) -> tuple[str, bytes]:
    """Have the rollout call the model, and take the call."""
    mail = await take(connection, AGENT)
    call = scripts.CommitStep(rid, 0, *mail, sends=[scripts.Send("model:m", b"call")], due=5, token="token")
    assert await commit(connection, call) is CommitOutcome.APPLIED
    return await take(connection, MODEL)


async def test_a_step_whose_mails_delivery_was_lost_leaves_the_mail_to_be_delivered_again(connection, rid, remember):
    # Given a step on mail whose delivery Redis has lost
    lose = remember()
    mail = await take(connection, AGENT)
    lose()
    # When the step is committed
    step = scripts.CommitStep(rid, 0, *mail, messages=[b"1"], due=5)
    assert await commit(connection, step) is CommitOutcome.STALE
    # Then the mail is delivered again, and its step is committed
    assert await take(connection, AGENT) == mail
    assert await commit(connection, step) is CommitOutcome.APPLIED


async def test_a_reply_to_a_call_whose_delivery_was_lost_is_merged_and_its_mail_is_stale(connection, rid, remember):
    mail = await take(connection, AGENT)
    call = scripts.CommitStep(rid, 0, *mail, sends=[scripts.Send("model:m", b"call")], due=5, token="token")
    assert await commit(connection, call) is CommitOutcome.APPLIED
    lose = remember()
    taken = await take(connection, MODEL)
    lose()
    entry = scripts.ReplyEntry(rid.decode(), 1, 0, b"reply", *taken, "token")
    assert await connection.run(scripts.reply([entry])) == [ReplyOutcome.MERGED]
    assert await take(connection, MODEL) == taken
    assert await connection.run(scripts.reply([entry])) == [ReplyOutcome.STALE]
    assert await connection.send("XLEN", MODEL) == 0


@pytest.mark.parametrize("delivered", [True, False], ids=["delivered", "not delivered"])
async def test_mail_that_was_found_useless_in_a_lost_history_stays(connection, rid, remember, delivered):
    # Given mail of a rollout that has ended since, which Redis has lost
    lose = remember()
    mail = await take(connection, AGENT)
    lose = remember() if delivered else lose
    end = scripts.CommitStep(rid, 0, final=scripts.RolloutEnd("r", 0, 1, "completed", b'{"a":1'))
    assert await commit(connection, end) is CommitOutcome.APPLIED
    lose()
    # When it is passed over
    useless = scripts.CommitStep(rid, 0, *mail, fields=None)
    outcome = await commit(connection, useless)
    # Then it is to be decided again, by who has it or gets it
    assert outcome is CommitOutcome.CONFLICT
    if not delivered:
        assert await take(connection, AGENT) == mail
    assert await commit(connection, scripts.CommitStep(rid, 0, *mail, due=5)) is CommitOutcome.APPLIED
    assert await commit(connection, useless) is CommitOutcome.STALE


@pytest.mark.parametrize("delivered", [True, False], ids=["delivered", "not delivered"])
async def test_a_call_that_was_found_unwanted_in_a_lost_history_stays(connection, rid, remember, delivered):
    # Given a call that another has answered, which Redis has lost
    lose = remember()
    taken = await asked(connection, rid)
    if delivered:
        lose = remember()
    reply = scripts.ReplyEntry(rid.decode(), 1, 0, b"reply", token="token")
    assert await connection.run(scripts.reply([reply])) == [ReplyOutcome.MERGED]
    lose()
    # When its mail is acknowledged as that of a call that is not wanted any more
    unwanted = scripts.ReplyEntry(rid.decode(), 1, 0, None, *taken, "token")
    outcomes = await connection.run(scripts.reply([unwanted]))
    # Then it stays where it is wanted, and where it is not there is none
    assert outcomes == [ReplyOutcome.WANTED if delivered else ReplyOutcome.STALE]
    assert await connection.send("XLEN", MODEL) == delivered


async def test_a_rollout_is_due_from_its_admission_on(connection, rid):
    now = int((await connection.send("TIME"))[0])
    assert now + 50 < int(await connection.send("ZSCORE", keys.due, rid)) / 1000 < now + 70
