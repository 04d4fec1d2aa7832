"""A process that asks a server as a model worker does: `python caller.py REDIS_URL BASE_URL SECONDS CALLS [OPTION=VALUE...]`.

CALLS are in flight at once. It prints a JSON object: how many calls were answered, how many ended with which fault, and
the seconds that they waited for limits.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from gymq_workers.model.openai.backend import OpenAIBackend

from gymq.api.backend import Request
from gymq.errors import CallError
from gymq.runtime.rate_limit import SharedLimiter
from gymq.settings import Settings
from gymq.store.connection import Connection
from gymq.wire.message import Conversation, Message, encode_message


async def main(redis_url: str, base_url: str, seconds: float, calls: int, options: dict[str, str]) -> None:
    backend = OpenAIBackend("mock", {"base_url": base_url, **options})
    for part in backend.limited():
        part.limiter = SharedLimiter(
            Connection(Settings(redis_url=redis_url), "caller"),
            part.account(),
            backend.limits,
            backend.learning,
            part.subject(),
        )
    await backend.start()
    until = time.monotonic() + seconds
    said: Counter[str] = Counter()
    waited = 0.0
    turn = encode_message(Message("user", "x" * 400))

    async def ask() -> None:
        nonlocal waited
        while time.monotonic() < until:
            request = Request("run.0.0", "weather", Conversation([turn]), b'{"max_tokens":100}')
            try:
                await backend.generate(request)
                said["answered"] += 1
            except CallError as error:
                said[error.fault.kind] += 1
            waited += request.waited

    tasks = [asyncio.create_task(ask()) for _ in range(calls)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await backend.stop()
    for part in backend.limited():
        await part.limiter.close()
    print(json.dumps({**said, "waited": waited}), flush=True)


if __name__ == "__main__":
    redis_url, base_url, seconds, calls, *pairs = sys.argv[1:]
    asyncio.run(main(redis_url, base_url, float(seconds), int(calls), dict(pair.split("=", 1) for pair in pairs)))
