"""The live sessions of a resource worker: objects that environments make of a rollout's state, and keep between calls.

A session is a cache of the state, never the truth: each call carries the rollout's state, and a session that stands for
another state is closed and made anew. While a call uses a session it stands for no state; at the call's end it stands for
the state that the call leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from gymq.errors import one_line
from gymq.wire.calls import Call

log = logging.getLogger(__name__)

#: Seconds without use until a session is closed: its rollout is elsewhere, or its model takes very long.
IDLE_LIMIT = 600.0

#: Seconds without use until the worker checks whether a session's rollout still exists.
ORPHAN_CHECK_AFTER = 30.0

#: Seconds that closing a session may take.
CLOSE_LIMIT = 30.0

#: Seconds that a worker waits at its end for sessions to close.
END_LIMIT = 5.0


class Session:
    """The live object of one rollout.

    Args:
        value: the object.
        call: the call for which it was made.
        close: closes an object of an environment.
    """

    __slots__ = ("born", "close", "dropped", "environment", "looked", "run", "state", "used", "users", "value")

    def __init__(self, value: object, call: Call, close: Callable[[str, object], None]) -> None:
        self.value = value
        self.close = close
        self.environment = call.environment
        self.run = call.run
        self.born = call.born
        self.state: bytes | None = digest(call.state)
        self.used = self.looked = time.monotonic()
        #: Functions that hold the object; one in a thread may outlive its call.
        self.users = 0
        self.dropped = False

    def take(self) -> object:
        """Return the object for a function that may change it; until `stands_for` the session stands for no state."""
        self.state = None
        return self.value

    def stands_for(self, state: bytes | None) -> None:
        """Note the state of which the environment would make this object.

        Args:
            state: encoded; None: there is none.
        """
        self.state = digest(state)

    def release(self) -> None:
        """Give the object back; the last user of a dropped session closes it."""
        self.users -= 1
        self.used = self.looked = time.monotonic()
        if self.dropped and not self.users:
            self.close(self.environment, self.value)

    def drop(self) -> None:
        """Close the object as soon as it has no users."""
        self.dropped = True
        if not self.users:
            self.close(self.environment, self.value)


def digest(state: bytes | None) -> bytes:
    """Return a digest that differs between states."""
    return b"" if state is None else hashlib.blake2b(state, digest_size=16).digest()


class _SessionQueue:
    """The queue of one rollout's calls, which use its session one at a time."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Sessions:
    """The sessions of one worker: one for each rollout, used by one call at a time.

    Args:
        threads: runs an object's `close` that is not `async`.
        counts: the worker's counters; sessions made and closed are added.
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
    async def use(self, call: Call, most: int, make: Callable[[], Awaitable[object]]) -> AsyncIterator[Session]:
        """Provide the session of a call's rollout: the kept one if it stands for the call's state, else a new one.

        Args:
            call: the call, with its state.
            most: the number of sessions of its environment to keep afterwards.
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
                        pass  # closed by release(); the rollout may have a new session already
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
        rollouts = [rollout for rollout, session in self._kept.items() if session.environment == environment]
        for rollout in rollouts[: max(0, len(rollouts) - most)]:
            if not self._kept[rollout].users:
                self.drop(rollout)

    def drop(self, rollout: str) -> None:
        """Close a rollout's session, if any, as soon as it has no users."""
        session = self._kept.pop(rollout, None)
        if session is not None:
            session.drop()

    def drop_all(self) -> None:
        """Close all sessions."""
        for rollout in list(self._kept):
            self.drop(rollout)

    def idle(self) -> list[tuple[str, str]]:
        """Close sessions without use for long; return the rollouts to check, each with its run."""
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

    def close(self, environment: str, value: object) -> None:
        """Close an object by its method `close`, if it has one.

        Args:
            environment: the environment's name, for an error line.
            value: the object.
        """
        self._counts["sessions_closed"] += 1
        close = getattr(value, "close", None)
        if close is not None:
            task = asyncio.get_running_loop().create_task(self._close(environment, close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, environment: str, close: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(CLOSE_LIMIT):
                if inspect.iscoroutinefunction(close):
                    await close()
                else:
                    result = await asyncio.get_running_loop().run_in_executor(self._threads, close)
                    if inspect.isawaitable(result):
                        await result
        except Exception as error:
            reason = one_line(f"{type(error).__name__}: {error}")
            log.warning("a session of %s could not be closed: %s", environment, reason)

    async def end(self) -> None:
        """Close all sessions, and wait for it."""
        self.drop_all()
        if self._closing:
            await asyncio.wait(self._closing, timeout=END_LIMIT)
