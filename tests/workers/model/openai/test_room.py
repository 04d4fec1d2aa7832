"""A backend that says how many calls it can work on, and when it cannot go on."""

from __future__ import annotations

import asyncio

import pytest
from gymq_workers.model.worker import ModelWorker

from gymq import plugins
from gymq.aio import cancel_and_wait
from gymq.api.backend import Backend
from gymq.errors import CallError, GymqError
from gymq.ops.status import overview
from gymq.runtime import actor, mailbox
from gymq.settings import Settings
from gymq.store.sharded import Shards
from gymq.wire.calls import Call, Generated, RequestParameters, Usage, encode
from gymq.wire.message import Message, encode_message
from tests.support.shard import keys
from tests.support.waiting import until

BOX = "model:small"


class Small(Backend):
    """Has little room, and holds each call until it is let go."""

    quarantinable = False

    def __init__(self, model, options) -> None:
        super().__init__(model, options)
        self.room, self.broken, self.inside, self.most = 2, "", 0, 0
        self.gate = asyncio.Event()

    async def generate(self, request):
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.gate.wait()
        self.inside -= 1
        if self.broken:
            raise CallError("model_unavailable", self.broken)
        return Generated(encode_message(Message("assistant", "well")), "stop", Usage())

    def capacity(self):
        return self.room

    def health(self):
        return self.broken

    def load(self):
        return {"running": float(self.inside)}


@pytest.fixture
def settings(redis_url) -> Settings:
    return Settings(redis_url=redis_url, liveness=0.3)


@pytest.fixture
def worker(settings, monkeypatch):
    monkeypatch.setattr(actor, "SWEEP", 0.05)
    monkeypatch.setattr(mailbox, "BLOCK_MS", 50)
    monkeypatch.setattr(plugins, "load", lambda group, name: Small)
    return ModelWorker(settings, {"model": "small", "concurrency": 6})


async def ask(connection, n: int) -> None:
    one = Call(
        f"r.{n}.0",
        1,
        0,
        "ask",
        "r",
        "e",
        n,
        0.0,
        messages=[encode_message(Message("user", "?"))],
        parameters=encode(RequestParameters()),
    )
    await connection.send("HSET", keys.rollout(one.rollout), "v", 1, "c1.0", 1)
    await connection.send("XADD", keys.mailbox(BOX), "*", "c", encode(one))


async def test_a_worker_takes_what_its_backend_has_room_for_and_never_more_than_it_may(worker, connection):
    backend = worker._backend._backend
    life = asyncio.create_task(worker.main())
    try:
        await until(lambda: worker.worker)
        await until(lambda: worker.intake.capacity == 2)
        for n in range(12):
            await ask(connection, n)
        await until(lambda: backend.inside == 2)
        assert worker.stats()["running"] == 2
        shards = Shards(worker.settings, "test")
        await shards.connect()
        async with asyncio.timeout(8):
            while list((await overview(shards)).loads.values()) != [{"running": 2.0}]:
                await asyncio.sleep(0.05)
        await shards.close()
        await asyncio.sleep(0.2)
        assert backend.inside == 2
        # More room is used at once, though no call has ended; but never more than --concurrency.
        backend.room = 100
        await until(lambda: backend.inside == 6)
        await asyncio.sleep(0.2)
        assert backend.inside == 6
        backend.gate.set()
        await until(lambda: worker.counts["served"] == 12)
        assert backend.most == 6
    finally:
        await cancel_and_wait([life])


async def test_a_broken_backends_calls_end_with_what_may_pass_and_the_worker_ends(worker, connection):
    backend = worker._backend._backend
    life = asyncio.create_task(worker.main())
    await until(lambda: worker.worker)
    for n in range(5):
        await ask(connection, n)
    await until(lambda: backend.inside == 2)
    backend.broken = "the engine died"
    backend.gate.set()
    with pytest.raises(GymqError, match="the engine died"):
        await asyncio.wait_for(life, 10)
    assert worker.counts["faults"] >= 2
    # The others are there for other workers; no call counts a death.
    assert await connection.send("XLEN", keys.mailbox(BOX)) == 5 - worker.counts["faults"]
    assert await connection.send("XLEN", keys.retry(BOX)) == 0
    assert await connection.send("HLEN", keys.workers) == 0


async def test_suspects_of_a_backend_that_cannot_stand_twice_may_try_again(settings, connection, monkeypatch):
    monkeypatch.setattr(plugins, "load", lambda group, name: Small)
    worker = ModelWorker(settings, {"model": "small"}, suspects_only=True)
    await worker.prepare()
    one = Call(
        "r.0.0",
        1,
        0,
        "ask",
        "r",
        "e",
        0,
        0.0,
        messages=[encode_message(Message("user", "?"))],
        parameters=encode(RequestParameters()),
    )
    with pytest.raises(CallError) as raised:
        await worker.serve(one)
    assert raised.value.fault.kind == "model_unavailable"
    await worker.close()
