"""Outages: told once for a shard, whatever number of connections notices them, and ended by the first answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gymq.errors import ServerUnreachable
from gymq.observe.events import Event, OutageBegan, OutageEnded, subscribe, unsubscribe
from gymq.store import connection as module
from gymq.store.connection import Connection
from gymq.store.topology import parse


@pytest.fixture
def told(monkeypatch) -> Iterator[list[Event]]:
    monkeypatch.setattr(module, "RECONNECT_PAUSE", 0.001)
    events: list[Event] = []
    for kind in (OutageBegan, OutageEnded):
        subscribe(kind, events.append)
    yield events
    unsubscribe(events.append)


def away(monkeypatch, tries: int) -> None:
    """Let so many tries of each connection to connect fail."""
    connect = Connection.connect
    left: dict[Connection, int] = {}

    async def failing(self: Connection) -> None:
        left[self] = left.get(self, tries) - 1
        if left[self] >= 0:
            raise ServerUnreachable("Redis cannot be reached: it is away", "start it")
        await connect(self)

    monkeypatch.setattr(Connection, "connect", failing)


async def test_an_outage_is_told_once_and_ends_with_the_first_answer(settings, told, monkeypatch):
    one, two = Connection(settings, "one"), Connection(settings, "two")
    away(monkeypatch, 3)
    await one.reconnect()
    await two.reconnect()
    assert [type(event) for event in told] == [OutageBegan]
    assert (await one.send("PING"), await two.send("PING")) == (b"PONG", b"PONG")
    began, ended = told
    assert isinstance(began, OutageBegan) and began.reason == "Redis cannot be reached: it is away"
    assert isinstance(ended, OutageEnded) and ended.seconds > 0
    for connection in (one, two):
        await connection.close()


async def test_a_connection_that_broke_while_the_server_is_there_is_no_outage(settings, told):
    connection = Connection(settings, "one")
    await connection.connect()
    await connection.reconnect()
    await connection.send("PING")
    assert told == []
    await connection.close()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://user:secret@here:1234/2?ssl_cert_reqs=none", "redis://here:1234/2"),
        ("unix://:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("sentinel://:secret@a:1,b:2/main/3", "sentinel://a:1/main"),
        ("redis-cluster://:secret@a:1,b:2?shards=1", "cluster://a:1"),
    ],
)
def test_the_place_of_a_shard_holds_no_password_and_no_options(url, place):
    shown = parse(url)[0].place
    assert shown.startswith(place)
    assert "secret" not in shown
