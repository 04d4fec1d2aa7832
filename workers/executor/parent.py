"""The executor's parent process: it stays alive in Redis, and answers the calls whose child died.

All of this runs on Celery's main thread, by timers of its loop: a process that forks should have no other threads.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import redis
from celery import bootsteps, signals
from celery.worker import state

from gymq.celery.queues import EXECUTOR
from gymq.runtime.reply import send_sync
from gymq.settings import Settings
from gymq.store.keys import Keys
from gymq.store.sync_connection import SyncConnection, sync_connections
from gymq.store.worker_registry import new_name
from gymq.wire.calls import Call, Reply
from gymq.wire.ids import CallId

from . import child_janitor, processes

#: Renewals of the liveness key per lapse: two may be lost.
RENEWALS = 3

#: Seconds between two tries to deliver what could not be delivered.
RETRY_PERIOD = 1.0

#: Seconds between two looks at whether children died. Celery hears of a death by a pipe that closes, but often a moment
#: before the process can be reaped, and not at all while a grandchild holds the pipe; then it would look 5 s later.
REAP_PERIOD = 0.25

#: Seconds after a death at which orphans are looked for: by then all of the group are gone.
ORPHANS_DELAY = 0.3


class Undelivered(Exception):
    """A child's reply, encoded, that it could not deliver."""


class ExecutorParent:
    """What the parent knows and does besides Celery; its children inherit it and use its name.

    Args:
        settings: where Redis is, and the limit of liveness.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = new_name(EXECUTOR, socket.gethostname(), os.getpid())
        self.memory_kills = processes.memory_kills()
        self.pool: Any = None
        self.hub: Any = None
        self.pid = os.getpid()
        self._folder = ""
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pipe = (-1, -1)
        self._clients = sync_connections(settings, EXECUTOR)
        self._undelivered: deque[tuple[Call, Reply]] = deque()

    def renew(self) -> None:
        """Renew the liveness key, on every shard."""
        for client in self._clients:
            try:
                client.do(partial(self._renew, client.keys.alive(self.name)))
                client.do(partial(self._forget, client.keys))
            except redis.RedisError as error:
                print(f"gymq: executor: liveness not renewed: {error}", file=sys.stderr)

    def _renew(self, key: str, server: redis.Redis) -> None:
        milliseconds = round(self.settings.liveness * 1000)
        # PEXPIRE works even when the server's memory is full.
        if not server.pexpire(key, milliseconds):
            server.set(key, "1", px=milliseconds)

    def _forget(self, keys: Keys, server: redis.Redis) -> None:
        """Give back what Redis says is ours and no child works on (it was rolled back), and what the dead have left behind."""
        ours = {request.id for request in state.reserved_requests} | {call.id for call, _ in self._undelivered}
        begun: Any = server.hgetall(keys.isolated)
        left: list[bytes] = []
        for id_, who in begun.items():
            call = id_.decode()
            if who == self.name.encode():
                gone = call not in ours
            else:  # the call of one that died is begun again if anybody waits for it, and else nobody would forget it
                rollout, step, n = CallId.parse(call)
                gone = not server.exists(keys.alive(who.decode())) and not server.hexists(keys.rollout(rollout), f"c{step}.{n}")
            left += [id_] if gone else []
        if left:
            server.hdel(keys.isolated, *left)

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
        for _ in range(len(self._undelivered)):
            call, reply = self._undelivered.popleft()
            try:
                send_sync(of(self._clients, call), call, reply)
            except Exception as error:
                print(f"gymq: executor: reply to {call.id} not delivered yet: {error}", file=sys.stderr)
                self._undelivered.append((call, reply))

    def bury(self, pid: int | None) -> None:
        """Kill what is left of a child, and those that left its group."""
        if pid:
            processes.kill_group(pid)
        if self.hub is not None:
            self.hub.call_later(ORPHANS_DELAY, self._kill_orphans)

    def open(self) -> None:
        """Make what calls print to and their temporary folder, before the first child is there."""
        self._folder = tempfile.mkdtemp(prefix="gymq-executor-")
        os.chmod(self._folder, 0o711)  # programs in the sandbox may be other users
        # Both ends stay open here: while the keeper is started again, calls wait and do not fail.
        self._pipe = os.pipe()
        self.keep()

    def keep(self) -> None:
        """Start the keeper, or start it again if it died."""
        if self._pipe == (-1, -1) or (self._keeper is not None and self._keeper.poll() is None):
            return
        argv = [sys.executable, "-I", "-S", child_janitor.__file__, str(os.getpid()), self.name, self._folder]
        self._keeper = subprocess.Popen(argv, stdin=self._pipe[0], start_new_session=True)

    def become_child(self) -> None:
        """In a child: leave what is the parent's, and get what is a child's."""
        # Else a server sees the connections open for as long as the child lives.
        for client in self._clients:
            client.forget()
        for stream in (1, 2):
            os.dup2(self._pipe[1], stream)
        for end in self._pipe:
            os.close(end)
        processes.lead_group()
        processes.die_with(self.pid)
        processes.adopt_orphans()
        processes.give_way()
        os.environ[child_janitor.MARK] = self.name
        os.environ["TMPDIR"] = tempfile.tempdir = self._temporary(os.getpid())
        self.tidy()

    def tidy(self) -> None:
        """In a child, after each call: an empty temporary folder, and nothing left unsaid."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        folder = self._temporary(os.getpid())
        with suppress(OSError):
            if not os.listdir(folder):
                return
        _remove(folder)
        os.mkdir(folder)
        os.chmod(folder, 0o711)

    def _temporary(self, pid: int) -> str:
        return os.path.join(self._folder, str(pid))

    def _kill_orphans(self) -> None:
        workers = getattr(getattr(self.pool, "_pool", None), "_pool", None)
        if workers is not None:
            alive = {worker.pid for worker in workers}
            if not processes.kill_children(spare=alive | {self._keeper.pid if self._keeper else 0}) and self.hub is not None:
                self.hub.call_later(ORPHANS_DELAY, self._kill_orphans)
            for path in Path(self._folder).iterdir():
                if int(path.name) not in alive:
                    _remove(str(path))


def _remove(folder: str) -> None:
    # It copes with trees of any depth, and follows no link.
    os.spawnvp(os.P_WAIT, "rm", ["rm", "-rf", "--", folder])


def of(shards: list[SyncConnection], call: Call) -> SyncConnection:
    """The shard of a call."""
    return shards[call.row % len(shards)]


#: The parent of this process, or this process; set before the first fork.
parent: ExecutorParent | None = None


def current() -> ExecutorParent:
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
            parent = ExecutorParent(Settings.from_environment())
            worker.consumer_cls = "gymq_workers.executor.consumer:ExecutorConsumer"

    def create(self, parent: Any) -> None:
        """Prepare for children: steps are created before the first is started, and so before the pool forks."""
        current().open()

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
        hub.call_repeatedly(RETRY_PERIOD, me.keep)
        hub.call_repeatedly(REAP_PERIOD, parent.pool.maintain_pool)

    def stop(self, parent: Any) -> None:
        """Deliver what the last children left."""
        current().hub = None
        current().deliver()

    terminate = stop


@signals.worker_process_init.connect
def _in_child(**_: Any) -> None:
    if parent is not None:
        parent.become_child()
