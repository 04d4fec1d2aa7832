"""The live sessions of a resource worker: objects that environments make of a rollout's state, and want to keep.

What is kept is a copy that saves work, never the truth: each call says what state the rollout has, and a session that stands
for another one is closed and made anew. While a call uses a session, that stands for nothing; only when the call has come to
its end does it stand for the state that the call leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any

from gymq.errors import one_line
from gymq.wire.calls import Call

#: Seconds for which nobody has used a session until it is closed: its rollout is elsewhere, or its model takes very long.
IDLE_LIMIT = 600.0

#: Seconds for which nobody has used a session until one looks whether its rollout is still there.
ORPHAN_CHECK_AFTER = 30.0

#: Seconds that closing a session may take.
CLOSING = 30.0

#: Seconds that a worker waits at its end for the sessions that are being closed.
ENDING = 5.0


class Session:
    """The live object of one rollout.

    Args:
        value: the object.
        call: the call for which it was made.
        close: closes it.
    """

    __slots__ = ("born", "close", "dropped", "environment", "looked", "run", "state", "used", "users", "value")

    def __init__(self, value: Any, call: Call, close: Callable[[str, Any], None]) -> None:
        self.value = value
        self.close = close
        self.environment = call.environment
        self.run = call.run
        self.born = call.born
        self.state: bytes | None = digest(call.state)
        self.used = self.looked = time.monotonic()
        #: Functions that hold it; one in a thread may outlive its call.
        self.users = 0
        self.dropped = False

    def take(self) -> Any:
        """The object, for a function that may change it; see `stands_for`."""
        self.state = None
        return self.value

    def stands_for(self, state: bytes | None) -> None:
        """The object is what the environment would make of this state.

        Args:
            state: encoded; None: there is none.
        """
        self.state = digest(state)

    def release(self) -> None:
        """One user less."""
        self.users -= 1
        self.used = self.looked = time.monotonic()
        if self.dropped and not self.users:
            self.close(self.environment, self.value)

    def drop(self) -> None:
        """Close it once nobody uses it."""
        self.dropped = True
        if not self.users:
            self.close(self.environment, self.value)


def digest(state: bytes | None) -> bytes:
    """What tells states apart."""
    return b"" if state is None else hashlib.blake2b(state, digest_size=16).digest()


class _SessionQueue:
    """The calls of one rollout that use its session one after another, and how many there are."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Sessions:
    """The sessions of one worker; a rollout has one, and one call at a time uses it.

    Args:
        threads: where `close` of an object runs that is not `async`.
        counts: where it counts those that it made, and those that it closed.
    """

    def __init__(self, threads: Executor, counts: dict[str, int]) -> None:
        self._threads = threads
        self._kept: OrderedDict[str, Session] = OrderedDict()
        self._queues: dict[str, _SessionQueue] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._counts = counts
        counts |= {"sessions_made": 0, "sessions_closed": 0}

    def __len__(self) -> int:
        return len(self._kept)

    @asynccontextmanager
    async def use(self, call: Call, most: int, make: Callable[[], Awaitable[Any]]) -> AsyncIterator[Session]:
        """The session of a call's rollout: the kept one, if it stands for the call's state, else a new one.

        Args:
            call: the call, with its state.
            most: how many sessions of its environment are kept when it is over.
            make: makes the object.
        """
        queue = self._queues.setdefault(call.rollout, _SessionQueue())
        queue.users += 1
        try:
            async with queue.lock:
                session = self._kept.get(call.rollout)
                if session is not None and (session.born != call.born or session.state != digest(call.state)):
                    self.drop(call.rollout)
                    session = None
                if session is None:
                    session = Session(await make(), call, self.close)
                    self._counts["sessions_made"] += 1
                    self._kept[call.rollout] = session
                session.users += 1
                try:
                    yield session
                finally:
                    session.release()
                    if session.dropped:
                        pass  # meanwhile, and another may have taken its place
                    elif session.state is None:
                        self.drop(call.rollout)
                    else:
                        self._kept.move_to_end(call.rollout)
                        self._trim(call.environment, most)
        finally:
            queue.users -= 1
            if not queue.users:
                del self._queues[call.rollout]

    def _trim(self, environment: str, most: int) -> None:
        mine = [rollout for rollout, one in self._kept.items() if one.environment == environment]
        for rollout in mine[: max(0, len(mine) - most)]:
            if not self._kept[rollout].users:
                self.drop(rollout)

    def drop(self, rollout: str) -> None:
        """Close a rollout's session, if there is one, once nobody uses it."""
        session = self._kept.pop(rollout, None)
        if session is not None:
            session.drop()

    def drop_all(self) -> None:
        """Close all of them."""
        for rollout in list(self._kept):
            self.drop(rollout)

    def idle(self) -> list[tuple[str, str]]:
        """Close what nobody has used for long; returns the rollouts, each with its run, that are to be looked at."""
        now = time.monotonic()
        due: list[tuple[str, str]] = []
        for rollout, session in list(self._kept.items()):
            if session.users:
                continue
            if now - session.used > IDLE_LIMIT:
                self.drop(rollout)
            elif now - session.looked > ORPHAN_CHECK_AFTER:
                session.looked = now
                due.append((rollout, session.run))
        return due

    def close(self, environment: str, value: Any) -> None:
        """Close an object by its `close`, if it has one."""
        self._counts["sessions_closed"] += 1
        close = getattr(value, "close", None)
        if close is not None:
            task = asyncio.get_running_loop().create_task(self._close(environment, close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, environment: str, close: Callable[[], Any]) -> None:
        try:
            async with asyncio.timeout(CLOSING):
                if inspect.iscoroutinefunction(close):
                    await close()
                else:
                    result = await asyncio.get_running_loop().run_in_executor(self._threads, close)
                    if inspect.isawaitable(result):
                        await result
        except Exception as error:
            what = one_line(f"{type(error).__name__}: {error}")
            print(f"gymq: a session of {environment} could not be closed: {what}", file=sys.stderr)

    async def end(self) -> None:
        """Close all of them, and wait until they are."""
        self.drop_all()
        if self._closing:
            await asyncio.wait(self._closing, timeout=ENDING)
