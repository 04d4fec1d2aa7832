"""The executor's parent process: it renews its liveness in Redis, and replies to calls whose child died.

All code here runs on Celery's main thread, by timers of its loop: a process that forks should have no other threads.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from celery import bootsteps, signals
from celery.worker import state

from gymq import plugins
from gymq.celery.queues import EXECUTOR
from gymq.loop_clock import STEP, TickedClock
from gymq.observe.events import CallFinished, WorkerLeft, WorkerReady, emit
from gymq.process.lifetime import adopt_orphans, die_with
from gymq.process.secret_variables import SERVERS, forget_secrets
from gymq.runtime.reply import send_sync
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings
from gymq.store.keys import Keys
from gymq.store.sync_connection import SyncConnection, sync_connections
from gymq.store.topology import parse
from gymq.store.worker_registry import new_name
from gymq.wire.calls import Call, Reply
from gymq.wire.ids import CallId

from . import child_janitor, processes, time_limits
from .trial_load import try_loading

if TYPE_CHECKING:
    from celery.concurrency.base import BasePool
    from celery.worker import WorkController
    from celery.worker.consumer import Consumer
    from kombu.asynchronous.hub import Hub

log = logging.getLogger(__name__)

#: Renewals of the liveness key in the time after which it lapses: two may be lost.
RENEWALS = 3

#: Seconds between two tries to deliver replies.
RETRY_PERIOD = 1.0

#: Seconds between two checks for dead children. Celery notices a death by a pipe that closes, but often a moment before the
#: process can be reaped, and never while a grandchild holds the pipe; its own check would come 5 s later.
REAP_PERIOD = 0.25

#: Seconds from a death to the search for orphans: by then the whole group is gone.
ORPHANS_DELAY = 0.3


class Undelivered(Exception):
    """A child could not deliver its reply; the argument is the encoded reply."""


class ExecutorParent:
    """The parent's state and duties besides Celery's; its children inherit it and use its name.

    Args:
        settings: the settings of this process.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = new_name(EXECUTOR, socket.gethostname(), os.getpid())
        self.memory_kills = processes.memory_kills()
        self.pool: BasePool = None
        self.hub: Hub | None = None
        self.pid = os.getpid()
        self._folder = ""
        self._janitor: subprocess.Popen[bytes] | None = None
        self._pipe = (-1, -1)
        self._shards = sync_connections(settings, EXECUTOR)
        self._ready = False
        #: Of Celery's loop, by which the time limits of calls count.
        self.clock = TickedClock()
        self._undelivered: deque[tuple[Call, Reply]] = deque()

    def renew(self) -> None:
        """Renew the liveness key, on every shard."""
        for client in self._shards:
            try:
                client.do(partial(self._renew, client.keys.alive(self.name)))
                client.do(partial(self._drop_claims, client.keys))
            except redis.RedisError as error:
                log.debug("liveness not renewed: %s", error)  # the outage is told

    def tell_ready(self) -> None:
        """Emit that it takes calls, the first time that it does."""
        if not self._ready:
            self._ready = True
            for address in parse(self.settings.redis_url):
                emit(WorkerReady(EXECUTOR, self.name, ["isolated"], address.place))

    def _renew(self, key: str, server: redis.Redis) -> None:
        milliseconds = round(self.settings.liveness * 1000)
        # PEXPIRE works even when the server's memory is full.
        if not server.pexpire(key, milliseconds):
            server.set(key, "1", px=milliseconds)

    def _drop_claims(self, keys: Keys, server: redis.Redis) -> None:
        """Drop this executor's claims on calls that no child has (Redis was rolled back), and claims of dead executors."""
        ours = {request.id for request in state.reserved_requests} | {call.id for call, _ in self._undelivered}
        claims: Any = server.hgetall(keys.isolated)
        stale: list[bytes] = []
        for call, executor in claims.items():
            if executor == self.name.encode():
                gone = call.decode() not in ours
            else:  # a dead executor's call that a rollout waits for is begun again, which renews its claim
                rollout, step, n = CallId.parse(call.decode())
                waits = server.hexists(keys.rollout(rollout), f"c{step}.{n}")
                gone = not waits and not server.exists(keys.alive(executor.decode()))
            stale += [call] if gone else []
        if stale:
            server.hdel(keys.isolated, *stale)

    def answer(self, call: Call, reply: Reply) -> None:
        """Send a reply in a child's place; it is tried again until it is delivered.

        Args:
            call: the call.
            reply: its reply.
        """
        self._undelivered.append((call, reply))
        self.deliver()

    def deliver(self) -> None:
        """Send the replies that are not delivered yet."""
        for _ in range(len(self._undelivered)):
            call, reply = self._undelivered.popleft()
            try:
                merged = send_sync(shard_of(self._shards, call), call, reply)
                emit(CallFinished.of(EXECUTOR, call, reply, merged))
            except Exception as error:
                log.warning("reply to %s not delivered yet: %s", call.id, error)
                self._undelivered.append((call, reply))

    def kill_remains(self, pid: int | None) -> None:
        """Kill a dead child's group at once, and soon the processes that left it.

        Args:
            pid: the child's; None: it had not begun.
        """
        if pid:
            processes.kill_group(pid)
        if self.hub is not None:
            self.hub.call_later(ORPHANS_DELAY, self._kill_orphans)

    def open(self) -> None:
        """Make the calls' output pipe and temporary folder, before the first child is forked."""
        self._folder = tempfile.mkdtemp(prefix="gymq-executor-")
        os.chmod(self._folder, 0o711)  # programs in the sandbox may run as other users
        # Both ends stay open here: while the janitor is started again, calls that print wait.
        self._pipe = os.pipe()
        self.ensure_janitor()

    def ensure_janitor(self) -> None:
        """Start the janitor if it does not run."""
        if self._pipe == (-1, -1) or (self._janitor is not None and self._janitor.poll() is None):
            return
        argv = [sys.executable, "-I", "-S", child_janitor.__file__, str(os.getpid()), self.name, self._folder]
        self._janitor = subprocess.Popen(argv, stdin=self._pipe[0], start_new_session=True)

    def become_child(self) -> None:
        """Make a fork a child: without the parent's connections, with its own group, output and temporary folder."""
        # Closed, or a server would see the connections open for as long as the child lives.
        for client in self._shards:
            client.forget()
        for stream in (1, 2):
            os.dup2(self._pipe[1], stream)
        for end in self._pipe:
            os.close(end)
        processes.lead_group()
        die_with(self.pid)
        adopt_orphans()
        processes.lower_priority()
        for name in SERVERS:  # the child has its settings; what a tool starts has no use for them
            os.environ.pop(name, None)
        os.environ[child_janitor.MARK] = self.name
        os.environ["TMPDIR"] = tempfile.tempdir = self._temporary(os.getpid())
        self.tidy()

    def tidy(self) -> None:
        """Flush a child's output and empty its temporary folder, after each call."""
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
            if not processes.kill_children(spare=alive | {self._janitor.pid if self._janitor else 0}) and self.hub is not None:
                self.hub.call_later(ORPHANS_DELAY, self._kill_orphans)
            for path in Path(self._folder).iterdir():
                if int(path.name) not in alive:
                    _remove(str(path))


def _remove(folder: str) -> None:
    # rm copes with trees of any depth, and follows no link.
    os.spawnvp(os.P_WAIT, "rm", ["rm", "-rf", "--", folder])


def shard_of(shards: list[SyncConnection], call: Call) -> SyncConnection:
    """Return the connection to a call's shard.

    Args:
        shards: the connections to all shards.
        call: the call.
    """
    return shards[call.row % len(shards)]


#: The executor of this process, whether parent or child; set before the first fork.
parent: ExecutorParent | None = None


def current() -> ExecutorParent:
    """Return the executor of this process.

    Raises:
        RuntimeError: this process belongs to no executor.
    """
    if parent is None:
        raise RuntimeError("gymq.isolated runs only in an executor, which `gymq worker executor` starts")
    return parent


class ExecutorStep(bootsteps.StartStopStep):
    """The worker's step with the parent's duties, enabled for the role `executor`."""

    # Comes before the pool, whose children inherit the name.
    requires = ("celery.worker.components:Hub",)

    def __init__(
        self, worker: WorkController, role: str | None = None, role_options: RoleOptions | None = None, **kwargs: Any
    ) -> None:
        super().__init__(worker, **kwargs)
        self.enabled = role == EXECUTOR
        self._environments: str | None = (role_options or {}).get("environments")
        if self.enabled:
            global parent
            parent = ExecutorParent(Settings.from_environment())
            worker.consumer_cls = "gymq_workers.executor.consumer:ExecutorConsumer"

    def create(self, parent: WorkController) -> None:
        """Prepare for children: all steps are created before the pool's is started and forks.

        Raises:
            UsageError: an environment that is to be served cannot be loaded.
        """
        forget_secrets(try_loading(self._environments))
        plugins.add_environments_later(self._environments)
        current().open()

    def start(self, parent: WorkController) -> None:
        """Set the liveness before the first call is taken."""
        current().hub = parent.hub
        current().pool = parent.pool
        adopt_orphans()
        current().renew()

    def register_with_event_loop(self, parent: Consumer, hub: Hub) -> None:
        """Set the timers; Celery calls this on every connection.

        Args:
            parent: the worker's consumer.
            hub: its event loop.
        """
        executor = current()
        executor.pool = parent.pool
        executor.renew()
        executor.tell_ready()
        hub.call_repeatedly(executor.settings.liveness / RENEWALS, executor.renew)
        hub.call_repeatedly(RETRY_PERIOD, executor.deliver)
        hub.call_repeatedly(RETRY_PERIOD, executor.ensure_janitor)
        hub.call_repeatedly(REAP_PERIOD, parent.pool.maintain_pool)
        hub.call_repeatedly(STEP, executor.clock.now)
        time_limits.let_stalls_pass(parent.pool._pool, hub, executor.clock)

    def stop(self, parent: WorkController) -> None:
        """Deliver the last replies."""
        current().hub = None
        current().deliver()
        emit(WorkerLeft(EXECUTOR, current().name, 0))

    terminate = stop


@signals.worker_process_init.connect
def _in_child(**_: object) -> None:
    if parent is not None:
        parent.become_child()
