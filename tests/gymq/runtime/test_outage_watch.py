"""The watch over an actor that was asked to end: it gives Redis a while to answer, and then no more."""

from __future__ import annotations

import asyncio

import pytest

from gymq.runtime import outage_watch
from gymq.runtime.outage_watch import outlasted
from gymq.store.connection import Outage


class Server:
    """Stands in for a connection: what it says to each probe, and whether it can be reached again."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def probe(self) -> None:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.Event().wait()

    async def reconnect(self) -> None:
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(outage_watch, "OUTAGE_LIMIT", 0.05)
    monkeypatch.setattr(outage_watch, "LOOK_INTERVAL", 0.001)


async def test_nothing_is_asked_before_an_end_is_asked_for():
    server = Server()
    watch = asyncio.create_task(outlasted(server, lambda: False))
    await asyncio.sleep(0.1)
    assert not watch.done() and server.asked == 0
    watch.cancel()


async def test_a_server_that_answers_no_more_is_outlasted():
    server = Server(b"PONG", Outage("it broke"), b"PONG")
    await asyncio.wait_for(outlasted(server, lambda: True), 10)
    assert server.asked == 4
