"""A worker of calls whose arguments say what becomes of them, and calls to it."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

from gymq.aio import cancel_and_wait
from gymq.errors import CallError
from gymq.runtime.call_worker import CallWorker
from gymq.wire.calls import Call, decode_reply, encode
from tests.support.shard import keys
from tests.support.waiting import until

BOX = "resource:e"


class Server(CallWorker):
    """Serves calls whose arguments say what becomes of them."""

    role = "resource"

    def __init__(self, settings, suspects_only=False, **options) -> None:
        super().__init__(settings, options, capacity=4, suspects_only=suspects_only)
        self.gate = asyncio.Event()
        self.started: list[str] = []
        self.cancelled: list[str] = []

    def mailboxes(self):
        return [BOX]

    async def serve(self, call):
        self.started.append(call.id)
        match call.arguments:
            case "wait":
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    self.cancelled.append(call.id)
                    raise
            case "waited":
                self.waited[call.id] = 1.5
            case "fault":
                raise CallError("environment", "the environment broke")
            case "defect":
                raise ZeroDivisionError("a defect")
        return b"value"


@asynccontextmanager
async def living(*servers):
    """Actors that live; each must still live at the end, or have been drained."""
    tasks = [asyncio.create_task(server.main()) for server in servers]
    try:
        await until(lambda: all(server.worker for server in servers))
        yield tasks
        for task in tasks:
            assert not task.done() or task.exception() is None, task.exception()
    finally:
        await cancel_and_wait(tasks)


async def call(connection, n: int, arguments: str = "", strikes: int = 0, kind: str = "tool", **fields) -> Call:
    """Send a call of a rollout of its own."""
    one = Call(f"r.{n}.0", 1, 0, kind, "r", "e", n, 0.0, arguments=arguments, **fields)
    await connection.send("HSET", keys.rollout(one.rollout), "v", 1, "c1.0", 1)
    marks = (("k", strikes, "w", "victim") if strikes else ()) + (("a", strikes + 2) if strikes else ())
    await connection.send("XADD", keys.mailbox(BOX), "*", "c", encode(one), *marks)
    return one


async def replies(connection, count: int, limit: float = 8.0) -> dict:
    """The replies so far, when there are so many, by rollout."""
    end = time.monotonic() + limit
    while await connection.send("XLEN", keys.mailbox("agent")) < count:
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)
    found = await connection.send("XRANGE", keys.mailbox("agent"), "-", "+")
    return {fields[1].decode(): decode_reply(fields[5]) for _, fields in found}
