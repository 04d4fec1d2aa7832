"""The connection: outages are told, nothing is sent twice behind our back, and scripts survive the server's restart."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from gymq.errors import GymqError, ServerUnreachable, UsageError
from gymq.settings import Settings
from gymq.store import connection, scripts
from gymq.store.connection import Connection, Outage, ServerFull
from tests.support.rollouts import linked
from tests.support.shard import keys


@pytest.fixture
async def one(settings):
    """A connection."""
    async with linked(settings) as one:
        yield one


@pytest.fixture
async def other(settings):
    """Somebody else's connection."""
    async with linked(settings) as other:
        yield other


async def cut(other: Connection) -> None:
    """Break all connections but this one."""
    await other.send("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_a_broken_connection_is_an_outage_and_the_command_is_not_sent_again(one, other):
    await cut(other)
    with pytest.raises(Outage):
        await one.send("INCR", "n")
    assert await other.send("GET", "n") is None
    await one.reconnect()
    assert await one.send("INCR", "n") == 1


async def test_what_the_server_refuses_is_an_error_that_names_the_command(one):
    await one.send("SET", "text", "x")
    with pytest.raises(GymqError, match=r"Redis refused INCR: .*not an integer"):
        await one.send("INCR", "text")
    assert await one.send("GET", "text") == b"x"


#: Replies of a server that cannot serve the shard for the time being, as each is worded.
PASSING = [
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN The cluster is down",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "ERR Error running script (call to f_0): @user_script:1: -MISCONF Errors writing to the AOF file: disk full",
]


@pytest.mark.parametrize("reply", PASSING, ids=[reply.partition(" ")[0] for reply in PASSING])
async def test_a_refusal_that_passes_is_an_outage(one, reply):
    with pytest.raises(Outage):
        await one.send("EVAL", "return redis.error_reply(ARGV[1])", 0, reply)
    await one.reconnect()
    assert await one.send("ECHO", "mine") == b"mine"


async def test_a_server_that_is_busy_with_a_script_is_waited_for(one, other):
    # Given a script that holds the server
    await other.send("CONFIG", "SET", "busy-reply-threshold", "10")
    busy = asyncio.create_task(other.send("EVAL", "while redis.call('TIME')[1] < ARGV[1] do end", 0, int(time.time()) + 2))
    await asyncio.sleep(0.2)
    # When others ask
    with pytest.raises(Outage, match="BUSY"):
        await one.send("SET", "text", "x")
    await one.reconnect()
    # Then they are answered once it is over
    assert busy.done()
    assert await one.send("SET", "text", "x") == b"OK"


async def test_a_connection_is_back_only_when_the_server_takes_writes(one, other):
    # Given a server that lacks replicas
    await other.send("CONFIG", "SET", "min-replicas-to-write", "1")
    with pytest.raises(Outage, match="NOREPLICAS"):
        await one.send("SET", "text", "x")
    # Then the connection is not back, though reads are answered
    back = asyncio.create_task(one.reconnect())
    await asyncio.sleep(0.6)
    assert not back.done()
    assert await other.send("GET", "text") is None
    # When the replicas are back, so is it
    await other.send("CONFIG", "SET", "min-replicas-to-write", "0")
    await asyncio.wait_for(back, 10)
    assert await one.send("SET", "text", "x") == b"OK"


async def test_a_script_that_fails_is_an_error_and_not_tried_again(one):
    await one.send("SET", keys.run("r"), "not a hash")
    with pytest.raises(GymqError, match="WRONGTYPE"):
        await one.insist(scripts.close_run("r"))


async def test_a_script_runs_after_the_server_has_forgotten_it(one):
    assert await one.run(scripts.close_run("r")) is scripts.CloseOutcome.REFUSED
    await one.send("SCRIPT", "FLUSH")
    assert await one.run(scripts.close_run("r")) is scripts.CloseOutcome.REFUSED


async def test_a_script_is_insisted_on_through_the_servers_death_and_restart(one, redis_server):
    # Given a connection that has run a script
    await one.send("HSET", keys.run("r"), "state", "open")
    assert await one.run(scripts.reopen_run("r"))
    # When the server dies, and is back after a while
    os.kill(redis_server.pid, signal.SIGKILL)
    insisting = asyncio.create_task(one.insist(scripts.reopen_run("r")))
    await asyncio.sleep(0.3)
    assert not insisting.done()
    await asyncio.to_thread(_start, redis_server)
    # Then the script has run
    assert await asyncio.wait_for(insisting, 10) in (0, 1)  # 0: the run was in the second that was not yet synced
    assert await one.send("PING") == b"PONG"


def _start(server) -> None:
    while server.alive:
        pass
    server.start()


async def test_a_script_is_insisted_on_while_the_servers_memory_is_full(one, other):
    # Given a server without room
    await one.send("HSET", keys.run("r"), "state", "open")
    await other.send("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(ServerFull, match="its memory is full"):
            await one.run(scripts.close_run("r"))
        # When it gets room while somebody insists
        insisting = asyncio.create_task(one.insist(scripts.close_run("r")))
        await asyncio.sleep(0.2)
        assert not insisting.done()
    finally:
        await other.send("CONFIG", "SET", "maxmemory", "0")
    # Then the script is run
    assert await asyncio.wait_for(insisting, 10) == 1


async def test_many_who_share_a_connection_get_their_own_answers_through_outages(one, other):
    # Given many coroutines, each asking for what only it wants to know
    for n in range(40):
        await other.send("HSET", keys.rollout(f"r.{n}.0"), "v", n)
    wrong: list[object] = []
    asked = 0

    async def ask(n: int) -> None:
        nonlocal asked
        while not stop.is_set():
            (stored,) = await one.insist(scripts.load_rollouts([scripts.LoadRequest(f"r.{n}.0", -1, "r", -1)]))
            asked += 1
            if stored.version != b"%d" % n:
                wrong.append((n, stored.version))

    stop = asyncio.Event()
    tasks = [asyncio.create_task(ask(n)) for n in range(40)]
    # When the connection breaks, again and again
    for _ in range(10):
        before = asked
        await cut(other)
        while asked == before:
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
    stop.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    # Then nobody got another's answer
    assert wrong == []


async def test_a_command_that_is_cancelled_leaves_no_answer_for_the_next(one, other):
    # Given a command that waits
    waiting = asyncio.create_task(one.send("BLPOP", "list", 5))
    await asyncio.sleep(0.05)
    # When it is cancelled, and answered later
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await other.send("RPUSH", "list", "late")
    # Then the next command gets its own answer
    try:
        assert await one.send("ECHO", "mine") == b"mine"
    except Outage:
        await one.reconnect()
        assert await one.send("ECHO", "mine") == b"mine"


async def test_a_server_that_does_not_answer_in_time_is_an_outage(settings, redis_server, monkeypatch):
    monkeypatch.setattr(connection, "READ_TIMEOUT", 0.2)
    async with linked(settings) as impatient:
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Outage):
                await impatient.send("PING")
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        # A late answer to the lost command is nobody's.
        await impatient.reconnect()
        assert await impatient.send("ECHO", "mine") == b"mine"


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:port/0"])
def test_an_address_that_cannot_be_understood_is_refused_in_one_line(url):
    with pytest.raises(UsageError) as refusal:
        Connection(Settings(redis_url=url), "x")
    assert "--redis" in str(refusal.value)
    assert "\n" not in str(refusal.value)


async def test_a_password_that_is_refused_is_told_at_once(redis_url):
    stranger = Connection(Settings(redis_url=redis_url.replace("redis://:", "redis://:wrong")), "x")
    with pytest.raises(ServerUnreachable, match="Redis cannot be reached"):
        await stranger.connect()


async def test_a_server_that_is_not_there_is_told_at_once():
    with pytest.raises(ServerUnreachable, match="Redis cannot be reached"):
        await Connection(Settings(redis_url="redis://127.0.0.1:1/0"), "x").connect()
