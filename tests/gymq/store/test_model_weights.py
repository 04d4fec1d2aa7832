"""What is wanted of a model stands on shard 0, others have copies; turns go from one replica to the next."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest

from gymq.client.publish_weights import forget, publish
from gymq.client.replica_status import check_loaded, wait_until_loaded, weights_status
from gymq.errors import GymqError, UsageError
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.model_weights import LoadFailure, copy, read_version, read_weights
from gymq.store.sharded import Shards
from gymq.store.worker_registry import WorkerEntry


@pytest.fixture
async def shards(redis_url):
    """Two shards: two databases of one server."""
    found = Shards(Settings(redis_url=f"{redis_url},{redis_url[:-1]}1", liveness=1.0), "test")
    await found.connect()
    yield found
    for connection in found.connections:
        await connection.send("FLUSHDB")
    await found.close()


async def worker(connection, name: str, mailbox: str = "model:m", **told: object) -> None:
    """A worker that is alive, as the registry has it."""
    info = WorkerEntry(**{"role": "model", "host": "h", "pid": int(name), "mailboxes": [mailbox], **told})
    await connection.send("HSET", connection.keys.workers, name, msgspec.json.encode(info))
    await connection.send("SET", connection.keys.alive(name), 1)


async def test_what_is_published_stands_on_every_shard(shards):
    wanted = await publish(shards, "m", 3, "some/where", mode="abort", rolling=False)
    assert (wanted.version, wanted.path) == (3, os.path.abspath("some/where"))
    for connection in shards.connections:
        assert await read_version(connection, "m") == 3
        assert await read_weights(connection, "m") == wanted
        assert await read_version(connection, "other") == 0


async def test_a_shard_that_missed_it_gets_it_from_who_finds_that(shards):
    first, second = shards.connections
    old = await publish(shards, "m", 1, "/w")
    await second.send("DEL", second.keys.weights("m"))
    await copy(second, old)
    assert await read_weights(second, "m") == old
    # Who knows only what was before writes nothing
    new = await publish(shards, "m", 2, "/w")
    await copy(second, old)
    assert await read_weights(second, "m") == new == await read_weights(first, "m")


async def test_the_same_publication_may_be_written_twice_and_no_version_goes_back(shards):
    wanted = await publish(shards, "m", 5, "/w")
    again = msgspec.json.encode(wanted)
    assert await shards.first.run(scripts.publish_weights("m", 5, wanted.id, again)) is None
    assert await shards.first.run(scripts.publish_weights("m", 5, "another", again)) == 5
    for version in (1, 4, 5):
        with pytest.raises(UsageError, match=f"at version 5, and versions only grow: {version} is refused"):
            await publish(shards, "m", version, "/w")
    assert await read_weights(shards.first, "m") == wanted
    # The other shard was never told
    assert await read_weights(shards.connections[1], "m") == wanted


async def test_versions_may_begin_again_when_they_were_forgotten(shards):
    await publish(shards, "m", 5, "/w")
    assert await forget(shards, "m")
    assert not await forget(shards, "m")
    for connection in shards.connections:
        assert await read_weights(connection, "m") is None
    await publish(shards, "m", 1, "/w")
    assert [await read_version(connection, "m") for connection in shards.connections] == [1, 1]


async def test_a_turn_is_one_replicas_until_it_gives_it_back_or_is_silent(shards):
    connection = shards.first
    assert await connection.run(scripts.take_load_turn("m", "a", 60_000))
    assert not await connection.run(scripts.take_load_turn("m", "b", 60_000))
    assert await connection.run(scripts.take_load_turn("m", "a", 60_000))
    assert await connection.run(scripts.take_load_turn("other", "b", 60_000))
    assert not await connection.run(scripts.take_load_turn("m", "b", 0))
    assert await connection.run(scripts.take_load_turn("m", "a", 0))
    assert await connection.run(scripts.take_load_turn("m", "b", 200))
    await asyncio.sleep(0.4)
    assert await connection.run(scripts.take_load_turn("m", "a", 60_000))


async def test_the_survey_tells_who_has_what(shards):
    first, second = shards.connections
    wanted = await publish(shards, "m", 2, "/w")
    # Given a process of which one shard knows more than the other, one that loads, one whose backend takes none, a suspect's
    await worker(first, "1", version=2)
    await worker(second, "1", version=1)
    await worker(first, "2", version=1, loading=2)
    await worker(first, "3")
    await worker(first, "4", version=1, quarantine=True)
    await worker(first, "5", "model:n")
    await worker(first, "6", "resource:weather", role="resource")
    await worker(first, "7", version=1)
    await first.send("DEL", first.keys.alive("7"))
    await first.send("HSET", first.keys.workers, "8", b"dead{}", "9", b"nonsense")
    (found,) = await weights_status(shards)
    assert (found.model, found.wanted) == ("m", wanted)
    assert [(one.pid, one.version, one.loading) for one in found.replicas] == [(1, 1, None), (2, 1, 2), (3, None, None)]
    assert [one.pid for one in found.behind] == [1, 2]
    with pytest.raises(GymqError, match="2 replicas have not taken it in time: h pid 1"):
        check_loaded(await wait_until_loaded(shards, wanted, 0.2), wanted)
    # When all have it
    await worker(second, "1", version=2)
    await worker(first, "2", version=2, loading=None)
    check_loaded(await wait_until_loaded(shards, wanted, 5), wanted)
    # or one could not
    failure = LoadFailure("h", 9, 2, "broken", 1.0)
    await first.send("LPUSH", first.keys.load_failures("m"), msgspec.json.encode(failure))
    with pytest.raises(GymqError, match="1 replicas could not load it, h pid 9: broken"):
        check_loaded(await wait_until_loaded(shards, wanted, 5), wanted)
    # What is published next has not failed yet
    await publish(shards, "m", 3, "/w")
    (found,) = await weights_status(shards, "m")
    assert found.failed == []


async def test_a_publisher_that_waits_says_who_is_missing(shards):
    wanted = await publish(shards, "m", 2, "/w")
    with pytest.raises(GymqError, match="no replica is alive"):
        check_loaded(await wait_until_loaded(shards, wanted, 0.1), wanted)
    await worker(shards.first, "1")
    with pytest.raises(GymqError, match="takes no weights"):
        check_loaded(await wait_until_loaded(shards, wanted, 0.1), wanted)


async def test_what_somebody_else_wrote_is_named_in_a_line(shards):
    await shards.first.send("HSET", shards.first.keys.weights("m"), "version", 1, "id", "x", "weights", b"nonsense")
    with pytest.raises(GymqError, match="cannot be read"):
        await read_weights(shards.first, "m")


async def test_what_the_registry_says_changes_only_while_the_worker_stands_there(shards):
    connection = shards.first
    assert not await connection.run(scripts.update_worker("w", b"{}"))
    await connection.send("HSET", connection.keys.workers, "w", b'{"version":1}')
    assert await connection.run(scripts.update_worker("w", b'{"version":2}'))
    await connection.send("HSET", connection.keys.workers, "w", b'dead{"version":2}')
    assert not await connection.run(scripts.update_worker("w", b'{"version":3}'))
    assert await connection.send("HGET", connection.keys.workers, "w") == b'dead{"version":2}'
