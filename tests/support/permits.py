"""The script of rate limits, at a time that only a test changes."""

from __future__ import annotations

from gymq.store.scripts import FreeRequests, PermitRequest, acquire_permits
from tests.support.shard import keys

NAME = "endpoint"


KEY = keys.rate(NAME)


class Script:
    """The script, at a time that only the test changes."""

    def __init__(self, connection):
        self.connection = connection
        self.now = 1_000_000_000_000.0

    async def ask(
        self, count=1, *, who="p", limits=(), back=(), refused=(), free=None, cost=1.0, costs=None, lowest=0.0, waited=0.0
    ):
        """Run it once."""
        asks = costs or [[cost] * len(limits)] * count
        back = list(back) or [0.0] * (len(limits) + 1)
        request = PermitRequest(
            NAME, who, "qwen at host", limits, asks, back, len(asks), waited, lowest, refused, free, self.now
        )
        return await self.connection.run(acquire_permits(request))

    def pass_seconds(self, seconds):
        """Let time pass for the script."""
        self.now += 1000 * seconds

    async def notes(self):
        """The hash as a dictionary of numbers."""
        flat = await self.connection.send("HGETALL", KEY)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {name.decode(): float(value) for name, value in pairs if name[:2] not in (b"w:", b"p:", b"la", b"by")}

    async def seconds(self, count, accept, *, demand=200):
        """Ask for permits every 100 ms; `accept` says of each whether the server takes it.

        Returns the permits and the accepted ones of each second.
        """
        permits, taken, refused = [], [], []
        for tick in range(10 * count):
            reply = await self.ask(demand, refused=refused)
            good = [accept() for _ in range(reply.granted)]
            refused = [reply.now] * good.count(False)
            if tick % 10 == 0:
                permits.append(0)
                taken.append(0)
            permits[-1] += reply.granted
            taken[-1] += good.count(True)
            self.pass_seconds(0.1)
        return permits, taken

    async def begin(self, accepted=50.0, sent=200):
        """Have a learned rate begin."""
        refused = int(0.5 * sent)
        return await self.ask(0, refused=[0.0], free=FreeRequests(sent, refused, accepted))
