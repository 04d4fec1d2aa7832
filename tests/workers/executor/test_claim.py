"""Which of several messages of one isolated call begins it."""

from __future__ import annotations

import asyncio

import pytest
from gymq_workers.executor.parent import ExecutorParent

from gymq.store import scripts
from tests.support.rollouts import linked
from tests.support.shard import keys

RID = "r.0.0"


@pytest.fixture
async def connection(settings):
    async with linked(settings) as connection:
        await connection.send("HSET", keys.rollout(RID), "v", 3, "c3.0", "1 7.5")
        for executor in ("a", "b"):
            await connection.send("SET", keys.alive(executor), 1)
        yield connection


async def claim(connection, executor: str, mark: str = "7.5", always: int = 0) -> int:
    return await connection.run(scripts.claim_call(RID, 3, 0, mark, executor, always))


async def test_a_copy_is_not_begun_while_an_executor_that_is_alive_works_on_the_call(connection):
    assert [await claim(connection, executor) for executor in "aba"] == [1, 0, 0]
    await connection.send("DEL", keys.alive("a"))
    assert [await claim(connection, executor) for executor in "ba"] == [1, 0]


async def test_a_copy_is_not_begun_once_the_call_is_answered(connection):
    assert await claim(connection, "a") == 1
    await connection.send("HDEL", keys.rollout(RID), "c3.0")
    await connection.send("HDEL", keys.isolated, f"{RID}:3:0")
    assert await claim(connection, "b") == 0
    assert await claim(connection, "b", always=1) == 1  # what cleans up


async def test_a_call_of_a_history_that_redis_has_lost_is_not_begun(connection):
    assert await claim(connection, "a", mark="7.25") == 0
    await connection.send("HSET", keys.rollout(RID), "c3.0", "1")  # of an older version, which set no marks
    assert await claim(connection, "a", mark="7.25") == 1


async def test_the_reply_of_an_isolated_call_ends_its_claim_and_that_of_a_lost_history_does_not(connection):
    assert await claim(connection, "a") == 1
    assert await connection.run(scripts.reply([scripts.ReplyEntry(RID, 3, 0, b"late", "", "", "7.25")])) == [False]
    assert await connection.send("HEXISTS", keys.isolated, f"{RID}:3:0") == 1
    assert await connection.run(scripts.reply([scripts.ReplyEntry(RID, 3, 0, b"", "", "", "7.5")])) == [True]
    assert await connection.send("HEXISTS", keys.isolated, f"{RID}:3:0") == 0


async def test_what_redis_has_of_an_executor_after_a_roll_back_is_forgotten(connection, settings):
    # Given claims: of this executor, which works on none; of a dead one, of calls that nobody waits for and that one waits for
    parent = ExecutorParent(settings)
    claims = {f"{RID}:2:0": parent.name, f"{RID}:1:0": "dead", f"{RID}:3:0": "dead", f"{RID}:1:1": "b"}
    await connection.send("HSET", keys.isolated, *[text for pair in claims.items() for text in pair])
    # When it renews its liveness
    await asyncio.to_thread(parent.renew)
    # Then what is its own and what nobody needs is gone, what somebody waits for or works on stays
    assert sorted(await connection.send("HKEYS", keys.isolated)) == sorted(id.encode() for id in (f"{RID}:3:0", f"{RID}:1:1"))
