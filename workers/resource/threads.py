"""The threads of a resource worker, with the calls that hang in them, and the watch over its loop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any, TypeVar

from gymq.observe.work import work_in_hand
from gymq.wire.calls import Call

from ..invocation.invoke import called
from ..invocation.result_encoding import callable_name

T = TypeVar("T")

#: Threads for hooks and tools that are not `async`.
MAX_THREADS = 16

log = logging.getLogger(__name__)


class ToolThreads(ThreadPoolExecutor):
    """Threads that know their calls: one that hangs cannot be stopped, only counted."""

    def __init__(self) -> None:
        super().__init__(MAX_THREADS, thread_name_prefix="gymq-tool")
        self._running: set[str] = set()
        #: Calls that run on beyond their time limit: id -> `environment.tool`.
        self.stuck: dict[str, str] = {}

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function for the call that is being served.

        Args:
            fn, args, kwargs: the function and its arguments.
        """
        call = work_in_hand.get()
        if call is None:  # a session is being closed
            return super().submit(fn, *args, **kwargs)

        def run() -> T:
            self._running.add(call.id)
            token = work_in_hand.set(call)
            try:
                return fn(*args, **kwargs)
            finally:
                work_in_hand.reset(token)
                self._running.discard(call.id)
                self.stuck.pop(call.id, None)

        return super().submit(run)

    def given_up(self, call: Call) -> None:
        """Note a call beyond its time limit; its thread, if it has one, is lost until it returns."""
        if call.id in self._running:
            self.stuck[call.id] = callable_name(call)
            if call.id not in self._running:  # it has just returned
                self.stuck.pop(call.id, None)

    @property
    def lost(self) -> bool:
        """Whether half of the threads hang; the rest will follow, and calls would wait for ever."""
        return len(self.stuck) >= MAX_THREADS / 2


def watch_loop(limit: float) -> Callable[[], None]:
    """Log which call blocks the running loop, once for each blockage.

    Args:
        limit: seconds for which the loop may stand still.

    Returns:
        A function that ends the watch.
    """
    loop, loops_thread, ended = asyncio.get_running_loop(), threading.get_ident(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            turned = threading.Event()
            try:
                loop.call_soon_threadsafe(turned.set)
            except RuntimeError:
                return  # the loop was closed
            if not turned.wait(limit) and not ended.is_set():
                log.warning("%s", _culprit(sys._current_frames().get(loops_thread), limit))
                turned.wait()
            ended.wait(limit / 4)

    threading.Thread(target=watch, name="gymq-loop-watch", daemon=True).start()
    return ended.set


def _culprit(frame: FrameType | None, limit: float) -> str:
    where = "" if frame is None else f" ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"
    while frame is not None:
        if (call := called(frame)) is not None:
            return (
                f"{callable_name(call)} blocks the loop for more than {limit:g} s{where}; all other calls wait: "
                "make it a plain def, let it await, or say isolated=True"
            )
        frame = frame.f_back
    return f"the loop stands still for more than {limit:g} s{where}, in no tool"
