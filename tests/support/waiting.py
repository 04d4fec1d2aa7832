"""Waiting for something to become true: `wait_until` in a test without a loop, `until` in one that has a loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], limit: float = 10.0, what: str = "") -> None:
    """Wait until a condition is true.

    Raises:
        AssertionError: it is not within `limit` seconds.
    """
    until = time.monotonic() + limit
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit:g} s: {what or condition}")
        time.sleep(0.02)


async def until(condition: Callable[[], object], limit: float = 10.0) -> None:
    """Wait until a condition is true; it may be a coroutine function.

    Raises:
        AssertionError: it is not within `limit` seconds.
    """
    end = time.monotonic() + limit
    while True:
        value = condition()
        if await value if inspect.isawaitable(value) else value:
            return
        assert time.monotonic() < end, f"not within {limit:g} s"
        await asyncio.sleep(0.01)
