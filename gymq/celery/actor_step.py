"""An actor inside a Celery worker: a thread with an asyncio loop, started, watched, drained and stopped with the worker.

Celery, told to stop, closes its consumer first, and with it events, heartbeats and remote control. So the first SIGTERM
does not reach it: the actor drains while the worker stays visible; when the actor's `main` has returned, Celery's own
warm shutdown begins. A second SIGTERM, or SIGINT, stops the actor. If it dies unasked, the process ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from celery import bootsteps
from celery.platforms import EX_FAILURE, EX_OK
from celery.worker import state

from gymq import plugins
from gymq.celery.queues import EXECUTOR, QUEUES, ROLLOUTS_QUEUE
from gymq.errors import GymqError, UsageError
from gymq.observe import logs
from gymq.observe.metrics import WorkerGauges
from gymq.runtime import interpreter
from gymq.runtime.multi_shard import host_role
from gymq.runtime.worker_host import Event, HostedActor, RoleOptions
from gymq.settings import Settings

log = logging.getLogger(__name__)

#: Seconds between two looks at the actor's events: Flower is for people.
EVENT_PERIOD = 0.5

#: Events sent at one look: some 40 publishes, a few milliseconds of the main thread.
EVENT_BATCH = 1000

#: Seconds that a drain may take unless the option `drain_limit` says otherwise; actors keep a shorter limit themselves.
DRAIN_LIMIT = 60.0

#: Seconds that an actor may take to stop; what it holds is handed back by others if it does not make it.
STOP_LIMIT = 10.0

#: Seconds that Celery and the interpreter may take to end after that; a tool's thread that hangs would hold them for ever,
#: and Celery waits for a Redis that is away.
EXIT_LIMIT = 7.0

#: Seconds for which the watcher leaves it to Celery's loop to begin the shutdown; it does not turn while Redis is away.
LOOP_LIMIT = 2.0

#: Seconds between two notes that the loop turns.
PULSE_INTERVAL = 1.0

#: Seconds without one after which a worker says that it is not alive: its lease has lapsed long before.
STILL_LIMIT = 30.0

# The words that end an actor; signal handlers put them on a queue and do nothing else.
_TERM, _INT, _DRAIN, _STOP, _FINISHED = "TERM", "INT", "drain", "stop", "finished"


def die(reason: str, code: int = EX_FAILURE) -> NoReturn:
    """End the process now, whatever its other threads do.

    Args:
        reason: one line.
        code: the exit code.
    """
    log.critical("%s", reason)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


#: Celery's base of steps, seen as untyped.
_Step: Any = bootsteps.StartStopStep


class Hub(Protocol):
    """Celery's event loop."""

    def call_repeatedly(self, delay: float, callback: Callable[[], None]) -> object:
        """Call `callback` every `delay` seconds.

        Args:
            delay: seconds.
            callback: called without arguments.
        """
        ...


class ActorThread:
    """A `WorkerHost`: one actor, the thread that it lives in, and the thread that sees to its end.

    Args:
        actor: the actor.
        drain_limit: seconds that it may take to drain.
        begin_shutdown: called once its `main` has returned.
    """

    def __init__(self, actor: HostedActor, drain_limit: float, begin_shutdown: Callable[[], None]) -> None:
        self._actor = actor
        self.finished = threading.Event()
        self.draining = threading.Event()
        self._limit = drain_limit
        self._begin_shutdown = begin_shutdown
        self._turned = time.monotonic()
        # SimpleQueue.put may be called from a signal handler.
        self._words: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the actor and its watcher."""
        for target, name in ((self._live, "gymq-actor"), (self._watch, "gymq-watcher")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def drain(self) -> None:
        """Let the actor finish, then shut the worker down; may be called again."""
        self._words.put(_DRAIN)

    def stop(self) -> None:
        """Let the actor end soon, then shut the worker down; may be called again."""
        self._words.put(_STOP)

    def wake(self) -> None:
        """Let the actor look at what is wanted."""
        self._actor.wake()

    def stats(self) -> dict[str, Any]:
        """Return the actor's numbers."""
        return self._actor.stats()

    def gauges(self) -> WorkerGauges:
        """Return what the actor has in hand."""
        return self._actor.gauges()

    def alive(self) -> bool:
        """Return whether the actor's loop has turned within the last half a minute."""
        return time.monotonic() - self._turned < STILL_LIMIT

    @property
    def events(self) -> deque[Event]:
        """The actor's events that wait to be sent."""
        return self._actor.events

    def on_signal(self, number: int, _frame: object) -> None:
        """Handle SIGTERM and SIGINT.

        Args:
            number: the signal's number.
            _frame: the frame that it interrupted.
        """
        self._words.put(_TERM if number == signal.SIGTERM else _INT)

    def _live(self) -> None:
        try:
            asyncio.run(self._life())
        except BaseException as error:
            log.critical("a defect of gymq ends this worker", exc_info=True)
            die(f"{type(self._actor).__name__} died: {type(error).__name__}: {error}")

    async def _life(self) -> None:
        interpreter.tune()
        pulse = asyncio.create_task(self._pulse())
        # Its end is said before the loop is closed: closing waits for the threads that its tools still run in.
        try:
            await self._actor.main()
        except GymqError as error:
            die(f"{type(self._actor).__name__} ended: {error}", error.exit_code)
        pulse.cancel()
        if not self.draining.is_set():
            die(f"{type(self._actor).__name__} returned from main without a drain or stop")
        self.finished.set()
        self._words.put(_FINISHED)

    async def _pulse(self) -> None:
        while True:
            self._turned = time.monotonic()
            await asyncio.sleep(PULSE_INTERVAL)

    def _watch(self) -> None:
        deadline: float | None = None
        stopping = False
        while True:
            try:
                word = self._words.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                if stopping:
                    die(f"{type(self._actor).__name__} did not stop within {STOP_LIMIT:g} s")
                word = _STOP
            if word == _FINISHED:
                break
            first = not self.draining.is_set()
            self.draining.set()
            if not stopping and (word in (_INT, _STOP) or (word == _TERM and not first)):
                stopping, deadline = True, time.monotonic() + STOP_LIMIT
                self._ask(self._actor.stop)
            elif first:
                deadline = time.monotonic() + self._limit
                self._ask(self._actor.drain)
        self._begin_shutdown()
        time.sleep(EXIT_LIMIT)
        die(f"the worker did not end within {EXIT_LIMIT:g} s of its actor")

    def _ask(self, end: Callable[[], None]) -> None:
        try:
            end()
        except Exception as error:
            log.critical("a defect of gymq ends this worker", exc_info=True)
            die(f"{type(self._actor).__name__}.{end.__name__}: {type(error).__name__}: {error}")


class ActorStep(_Step):
    """The step of the worker that hosts the actor of its role.

    Args:
        worker: Celery's worker.
        role: the role's name; None: Celery's own command line, which knows no roles, has started the worker.
        role_options: the role's options.

    Raises:
        UsageError: there is no role.
    """

    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")

    def __init__(self, worker: Any, role: str | None = None, role_options: RoleOptions | None = None, **_: object) -> None:
        if role is None:
            raise UsageError(f"start workers by `gymq worker {'|'.join(QUEUES)}`")
        # The role alone decides: a worker of another role would take tasks that it cannot do.
        queues = worker.app.amqp.queues
        queues.select(list(queues))
        queues.deselect([name for name in queues if name not in QUEUES[role]])
        logs.identify(role)
        worker.gymq = None
        self.enabled = role != EXECUTOR
        self._worker = worker
        self._role = role
        self._options = role_options or {}
        self._host: ActorThread | None = None

    def create(self, parent: Any) -> None:
        """Make the actor, which loads what it serves.

        Raises:
            GymqError: its role is not installed, its options make no sense, or what it is to serve cannot be loaded.
        """
        role = plugins.load(plugins.ROLES, self._role)
        try:
            actor = host_role(role, Settings.from_environment(), self._options)
        except ValueError as error:  # an option that is no number
            raise UsageError(str(error)) from error
        self._host = parent.gymq = ActorThread(actor, drain_limit(self._options), self._begin_shutdown)

    def start(self, parent: object) -> None:
        """Start the actor, and take the signals over from Celery, which installed its handlers just before."""
        assert self._host is not None
        self._host.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._host.on_signal)

    def register_with_event_loop(self, parent: object, hub: Hub) -> None:
        """Send the actor's events from Celery's main thread; Celery calls this on every connection.

        Args:
            parent: the worker's consumer.
            hub: its event loop.
        """
        hub.call_repeatedly(EVENT_PERIOD, self._tick)

    def stop(self, parent: object) -> None:
        """Drain the actor if Celery stops for a reason of its own."""
        if self._host is not None and not self._host.finished.is_set():
            self._host.drain()
            self._host.finished.wait()

    def terminate(self, parent: object) -> None:
        """Stop the actor if Celery stops in a hurry for a reason of its own."""
        if self._host is not None and not self._host.finished.is_set():
            self._host.stop()
            self._host.finished.wait()

    def _tick(self) -> None:
        host, consumer = self._host, self._worker.consumer
        assert host is not None
        if host.draining.is_set() and ROLLOUTS_QUEUE in self._worker.app.amqp.queues.consume_from:
            consumer.cancel_task_queue(ROLLOUTS_QUEUE)
        dispatcher = consumer.event_dispatcher
        if dispatcher is None:
            return
        events = host.events
        for _ in range(min(len(events), EVENT_BATCH)):
            kind, fields = events.popleft()
            dispatcher.send(kind, **fields)

    def _begin_shutdown(self) -> None:
        # On the main thread if it turns, so that the last events still go out.
        self._worker.hub.call_soon(self._shutdown)
        time.sleep(LOOP_LIMIT)
        state.should_stop = EX_OK

    def _shutdown(self) -> None:
        try:
            self._tick()
            self._worker.consumer.event_dispatcher.flush()
        finally:
            state.should_stop = EX_OK


def drain_limit(options: RoleOptions) -> float:
    """Return the seconds that a drain may take, the option `drain_limit`.

    Raises:
        UsageError: it is no number.
    """
    try:
        return float(options.get("drain_limit", DRAIN_LIMIT))
    except ValueError:
        raise UsageError(f"--option drain_limit={options['drain_limit']}: write a number of seconds") from None
