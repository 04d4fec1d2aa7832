"""The life of one `gymq run`: prepare the run's record, start the other processes, watch, stop in order.

Messages take the same path as with workers started by hand; this process only enqueues the rows and watches. The file of
finished rollouts comes first: a rollout that stands in it is never done again, whatever Redis says.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from gymq.aio import cancel_and_wait
from gymq.client.output import output_kind
from gymq.client.rollout_set import RolloutSet
from gymq.errors import GymqError
from gymq.local.launch import SINK, children, served_here
from gymq.local.preflight import Preflight
from gymq.local.producer_thread import ProducerThread
from gymq.local.progress import RunProgress
from gymq.local.role_thread import RoleThread
from gymq.local.run_dir import RunDir
from gymq.local.run_guard import RunGuard, Stop, stopped_by
from gymq.local.run_options import RunOptions
from gymq.local.run_record import RunRecord
from gymq.local.source_ranges import produce, source_ranges
from gymq.local.wait_reader import WaitReader
from gymq.observe import traces
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.process.supervisor import Supervisor
from gymq.settings import Settings
from gymq.store.connection import Outage
from gymq.store.run_status import RunStatus
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards

#: Seconds between two looks at the children.
POLL_INTERVAL = 0.1

#: Seconds between two looks at the run's numbers.
STATUS_PERIOD = 0.5

#: Restarts of the embedded server before the run is given up.
MAX_RESTARTS = 5


class _Underway(NamedTuple):
    """All that a run under way is looked after by.

    Args:
        settings: where Redis is.
        supervisor: of the processes.
        producer: of the rows.
        server: the embedded server; None: another one is used.
        progress: what is shown.
    """

    settings: Settings
    supervisor: Supervisor
    producer: ProducerThread
    server: EmbeddedRedis | None
    progress: RunProgress


class RunSession:
    """One `gymq run`, from when its folder is locked.

    Args:
        options: the options.
        config: the run.
        source: the name of the data in the run's ledger.
        rows: the rows, as they were looked at.
        kept: the rollouts that the file holds.
        folder: the file and the folder beside it.
        stop: set to the signal for which the run is to stop in order; any thread may set it.
        word: returns a line of the progress in the words of the caller.
    """

    def __init__(
        self,
        options: RunOptions,
        config: RunConfig,
        source: str,
        rows: Preflight,
        kept: RolloutSet,
        folder: RunDir,
        stop: Future[int],
        word: Callable[[str], str],
    ) -> None:
        self._options = options
        self._config = config
        self._source = source
        self._rows = rows
        self._kept = kept
        self._folder = folder
        #: The consumer that is the run's own sink.
        self._consumer = output_kind(folder.out)
        self._parts: list[tuple[int, int | None]] = []
        self._stop = stop
        self._word = word
        self._supervisor: Supervisor | None = None
        self._roles: list[RoleThread] = []
        #: Whether a process has died: then the logs are worth keeping.
        self.troubled = False
        #: The run's status when it was last read; None: not yet.
        self.status: RunStatus | None = None
        self._guard: RunGuard | None = None
        self._waits = WaitReader("" if options.redis else f"--of {shlex.quote(str(folder.out))}")

    @property
    def total(self) -> int:
        """Rollouts that the file will hold."""
        return max(self._rows.rows * self._config.samples, self.status.total if self.status else 0, len(self._kept))

    def kill(self) -> None:
        """End all processes at once; any thread may call it, once `stop` is set."""
        for role in self._roles:
            role.stop()
        if self._supervisor is not None:
            self._supervisor.kill()

    def go(self) -> Stop | None:
        """Run until all rollouts have ended, none can succeed, or `stop` is set; on the main thread a signal sets it.

        Returns:
            Why the run was stopped; None: it came to its end.

        Raises:
            GymqError: the run cannot go on.
        """
        server = None
        if self._options.redis is None:
            server = EmbeddedRedis(self._folder.server)
            server.start()
        try:
            settings = Settings.from_environment(redis_url=self._options.redis if server is None else server.url)
            # The Celery app, by which rows are announced, is made of the environment's settings.
            with _variables(settings.environment()):
                asyncio.run(self._prepare(settings))
                with RunProgress(self._config.name, self.total, len(self._kept), self._word) as progress:
                    if line := traces.missing():
                        progress.say(f"gymq: {line}")
                    return self._work(settings, server, progress)
        finally:
            if server is not None:
                server.stop()

    async def _prepare(self, settings: Settings) -> None:
        """Bring the run's record in line with the file of finished rollouts."""
        name = self._config.name
        async with Shards(settings, "gymq-run") as shards:
            record = RunRecord(shards, self._config, self._consumer, self._folder.out, self._kept)
            await record.enter(shared=self._options.redis is not None, again=self._options.retry_failed)
            self._parts = await source_ranges(shards.first, name, self._source, self._options.limit)
            self._guard = RunGuard(self._options, await shards.status(name))
            await self._guard.enter(shards)
            # Before the first rollout ends: what a consumer that comes later has missed is gone.
            await shards.declare(name, self._consumer)

    def _work(self, settings: Settings, server: EmbeddedRedis | None, progress: RunProgress) -> Stop | None:
        logs = self._folder.logs
        models = {self._config.model: self._options.backend_options}
        if self._config.judge:
            models.setdefault(self._config.judge, self._options.judge_options)
        environments = self._rows.specs()
        specs = children(settings, self._config, models, environments, self._folder.out, logs)
        supervisor = self._supervisor = Supervisor(specs)
        self._roles = [RoleThread(settings, role, options) for role, options in served_here(self._config, models, environments)]
        data, prompt = self._options.data, self._options.prompt
        producer = ProducerThread(partial(produce, settings, self._config, data, self._source, self._parts, prompt=prompt))
        supervisor.start()
        try:
            for role in self._roles:
                role.start()
            producer.start()
            stopped = asyncio.run(self._watch(_Underway(settings, supervisor, producer, server, progress)))
            if _on_main_thread():
                signal.signal(signal.SIGTERM, terminate)
            if stopped:
                progress.say(stopped.line)
            return stopped
        finally:
            producer.stop()
            for role in self._roles:
                role.drain()
            supervisor.stop()

    async def _watch(self, underway: _Underway) -> Stop | None:
        """Look after all processes until the sink is finished, or a signal or a verdict stops the run."""
        stop = asyncio.wrap_future(self._stop)
        if _on_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, _once, self._stop, number)
        look = asyncio.create_task(self._look_after(underway))
        try:
            # Not by turns: a look may wait for a Redis that does not answer.
            await asyncio.wait((look, stop), return_when=asyncio.FIRST_COMPLETED)
            return look.result() if look.done() else stopped_by(stop.result())
        finally:
            await cancel_and_wait([look])

    async def _look_after(self, underway: _Underway) -> Stop | None:
        """Look after all processes until the sink is finished, or a verdict stops the run."""
        settings, supervisor, producer, server, progress = underway
        restarts, due = 0, 0.0
        async with Shards(settings, "gymq-watch") as shards:
            while True:
                for event in supervisor.poll():
                    if event != f"{SINK}: finished":
                        self.troubled = True
                        progress.say(event)
                producer.check()
                for role in self._roles:
                    role.check()
                finished = SINK in supervisor.finished
                if server is not None and not server.alive:
                    restarts += 1
                    if restarts > MAX_RESTARTS:
                        raise GymqError(f"the server died {restarts} times; see {self._folder.server / 'server.log'}")
                    self.troubled = True
                    progress.say("server: died; starting it again")
                    await asyncio.to_thread(server.start)
                if finished or time.monotonic() >= due:
                    due = time.monotonic() + STATUS_PERIOD
                    before = self.status.ended if self.status else 0
                    await self._read_status(shards, progress, finished)
                    if self._guard and self.status and (verdict := await self._guard.judge(shards, self.status)):
                        return verdict
                    if self.status and self.status.ended != before:
                        supervisor.forgive()  # deaths that the run survives are no reason to give up
                    if producer.finished and self.status is not None and self.status.state == "open":
                        # The run is closed when all rows are enqueued: Redis has lost that, and perhaps rows before it.
                        producer.start()
                if finished:
                    return None
                await asyncio.sleep(POLL_INTERVAL)

    async def _read_status(self, shards: Shards, progress: RunProgress, last: bool) -> None:
        try:
            self.status = await shards.status(self._config.name)
            progress.show(self.status, last, await self._waits.words(shards, self.status))
        except Outage:
            with suppress(TimeoutError):
                await asyncio.wait_for(shards.reconnect(), STATUS_PERIOD)


def _once(stop: Future[int], number: int) -> None:
    with suppress(InvalidStateError):  # it stops already
        stop.set_result(number)


def _on_main_thread() -> bool:
    """Return whether this thread may handle signals; in a script or notebook a run lives in a thread of its own."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _variables(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of this process's environment for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def terminate(number: int, _frame: object) -> None:
    """Handle SIGTERM outside an event loop: `finally` clauses stop the processes that were started.

    Args:
        number: the signal's number.
        _frame: the frame that it interrupted.
    """
    raise SystemExit(128 + number)
