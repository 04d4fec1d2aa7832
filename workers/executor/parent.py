"""The executor's parent process: it stays alive in Redis, and answers the calls whose child died.

All of this runs on Celery's main thread, by timers of its loop: a process that forks should have no other threads.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from typing import Any

import redis
from celery import bootsteps, signals
from celery.worker import state
from redis.backoff import NoBackoff
from redis.retry import Retry

from gymq.bootstep import EXECUTOR
from gymq.call import Call, Reply
from gymq.keys import Keys
from gymq.reply import send_sync
from gymq.settings import Settings

from . import processes

#: Seconds that a command may wait for Redis: the parent's loop stands still meanwhile.
REDIS_TIMEOUT = 2.0

#: Renewals of the liveness key per lapse: two may be lost.
RENEWALS = 3

#: Seconds between two tries to deliver what could not be delivered.
RETRY_PERIOD = 1.0

#: Seconds between two looks at whether children died. Celery hears of a death by a pipe that closes, but often a moment
#: before the process can be reaped, and not at all while a grandchild holds the pipe; then it would look 5 s later.
REAP_PERIOD = 0.25

#: Seconds after a death at which orphans are looked for: by then all of the group are gone.
ORPHANS_DELAY = 0.3

#: HASH call id -> executor that has begun to work on it; the reply removes it.
STARTED = Keys().isolated


class Undelivered(Exception):
    """A child's reply, encoded, that it could not deliver."""


def connect(settings: Settings) -> redis.Redis:
    """A client for the parent or a child; nothing is sent twice behind our back.

    Args:
        settings: where Redis is.
    """
    return redis.Redis.from_url(
        settings.redis_url,
        socket_timeout=REDIS_TIMEOUT,
        socket_connect_timeout=REDIS_TIMEOUT,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        client_name=EXECUTOR,
    )


class Parent:
    """What the parent knows and does besides Celery; its children inherit it and use its name.

    Args:
        settings: where Redis is, and the limit of liveness.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"{EXECUTOR}-{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self.memory_kills = processes.memory_kills()
        self.pool: Any = None
        self.hub: Any = None
        self._client = connect(settings)
        self._undelivered: deque[tuple[Call, Reply]] = deque()

    def renew(self) -> None:
        """Renew the liveness key."""
        key, milliseconds = Keys().alive(self.name), round(self.settings.liveness * 1000)
        try:
            # PEXPIRE works even when the server's memory is full.
            if not self._client.pexpire(key, milliseconds):
                self._client.set(key, "1", px=milliseconds)
            self._forget()
        except redis.RedisError as error:
            print(f"gymq: executor: liveness not renewed: {error}", file=sys.stderr)

    def _forget(self) -> None:
        """Give back calls that Redis says are ours and that no child works on: it was rolled back after they were answered."""
        ours = {request.id for request in state.reserved_requests}
        started: Any = self._client.hgetall(STARTED)
        left = [call for call, who in started.items() if who == self.name.encode() and call.decode() not in ours]
        if left:
            self._client.hdel(STARTED, *left)

    def answer(self, call: Call, reply: Reply) -> None:
        """Send a reply for a child that cannot; tried again until it is delivered.

        Args:
            call: the call.
            reply: its reply.
        """
        self._undelivered.append((call, reply))
        self.deliver()

    def deliver(self) -> None:
        """Send what is not delivered yet."""
        while self._undelivered:
            call, reply = self._undelivered[0]
            try:
                send(self._client, call, reply)
            except Exception as error:
                print(f"gymq: executor: reply to {call.id} not delivered yet: {error}", file=sys.stderr)
                return
            self._undelivered.popleft()

    def bury(self, pid: int | None) -> None:
        """Kill what is left of a child, and those that left its group."""
        if pid:
            processes.kill_group(pid)
        if self.hub is not None:
            self.hub.call_later(ORPHANS_DELAY, self._kill_orphans)

    def close_inherited(self) -> None:
        """In a child: close the parent's connection, else a server sees it open for as long as the child lives."""
        self._client.connection_pool.reset()
        self._client.close()

    def _kill_orphans(self) -> None:
        workers = getattr(getattr(self.pool, "_pool", None), "_pool", None)
        if workers is not None:
            processes.kill_children(spare={worker.pid for worker in workers})


def send(client: redis.Redis, call: Call, reply: Reply) -> None:
    """Send a reply and forget that the call was started.

    Args:
        client: a connection.
        call: the call.
        reply: its reply.
    """
    send_sync(client, call, reply)
    client.hdel(STARTED, call.id)


#: The parent of this process, or this process; set before the first fork.
parent: Parent | None = None


def current() -> Parent:
    """The one executor of this process.

    Raises:
        RuntimeError: this process is none.
    """
    if parent is None:
        raise RuntimeError("gymq.isolated runs only in a worker started with --role executor -P prefork")
    return parent


class ExecutorStep(bootsteps.StartStopStep):
    """The step of the worker that does the parent's duties, when the role is `executor`."""

    # Before the pool, whose children inherit the name.
    requires = ("celery.worker.components:Hub",)

    def __init__(self, worker: Any, role: str | None = None, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.enabled = role == EXECUTOR
        if self.enabled:
            global parent
            parent = Parent(Settings.from_environment())

    def start(self, parent: Any) -> None:
        """Be alive before the first call is taken."""
        current().hub = parent.hub
        current().pool = parent.pool
        processes.adopt_orphans()
        current().renew()

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Set the timers; Celery calls this on every connection."""
        me = current()
        me.pool = parent.pool
        me.renew()
        hub.call_repeatedly(me.settings.liveness / RENEWALS, me.renew)
        hub.call_repeatedly(RETRY_PERIOD, me.deliver)
        hub.call_repeatedly(REAP_PERIOD, parent.pool.maintain_pool)

    def stop(self, parent: Any) -> None:
        """Deliver what the last children left."""
        current().hub = None
        current().deliver()

    terminate = stop


@signals.worker_process_init.connect
def _in_child(**_: Any) -> None:
    if parent is not None:
        parent.close_inherited()
        processes.die_with_parent()
        processes.lead_group()
        processes.adopt_orphans()
