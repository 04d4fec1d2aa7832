"""A model server with a limit: `bench.mock_server` behind a gate that refuses with 429 and Retry-After."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bench.mock_server import Connection, Options

#: Tokens of the mock's answers, as its usage says.
ANSWER_TOKENS = 7

#: Seconds' worth of its limit that a server lets through at once, as those that count by the second do.
BURST = 1.0


class Gate:
    """The limit of a server on requests that it lets through.

    Args:
        limit: units a second at a time since the gate's first request; None: no limit.
        share: of requests that are refused at random.
        tokens: whether the limit counts tokens, and not requests.
    """

    def __init__(self, limit: Callable[[float], float] | None = None, share: float = 0.0, tokens: bool = False) -> None:
        self.limit = limit
        self.share = share
        self.tokens = tokens
        self.taken = 0
        self.refused = 0
        self._began = time.monotonic()
        self._at = 0.0
        self._level = BURST * limit(0.0) if limit else 0.0

    def wait(self, units: float) -> float:
        """Take units out, and return 0; or take none, and return the seconds until there are enough."""
        if self.limit is None:
            return 0.0
        now = time.monotonic() - self._began
        rate = self.limit(now)
        self._level = min(BURST * rate, self._level + (now - self._at) * rate)
        self._at = now
        if self._level < units:
            return (units - self._level) / rate
        self._level -= units
        return 0.0

    def units(self, body: bytes) -> float:
        """Return what a request costs."""
        return len(body) // 4 + ANSWER_TOKENS if self.tokens else 1.0

    def refuses(self, body: bytes) -> float | None:
        """Return the seconds of a refusal's Retry-After; None: the request may pass."""
        wait = 1.0 if random.random() < self.share else self.wait(self.units(body))
        if not wait:
            self.taken += 1
            return None
        self.refused += 1
        return max(1.0, math.ceil(wait))


class _Gated(Connection):
    """A connection of the mock server behind a gate."""

    def __init__(self, options: Options, gate: Gate) -> None:
        super().__init__(options, {})  # type: ignore[arg-type]
        self._gate = gate

    def request(self, head: bytes, body: bytes) -> None:
        """Refuse a request, or answer it."""
        after = self._gate.refuses(body)
        if after is None:
            return super().request(head, body)
        return self.send(b'{"error":{"message":"too many requests"}}', 429, extra=b"Retry-After: %d\r\n" % after)


@asynccontextmanager
async def serving(gate: Gate, latency: float) -> AsyncIterator[str]:
    """Serve behind a gate, and give the base URL.

    Args:
        gate: the gate.
        latency: seconds of an answer.
    """
    options = Options(script="echo", latency=latency)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Gated(options, gate), "127.0.0.1", 0, backlog=4096)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    server.close()
