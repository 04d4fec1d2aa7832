"""The life of one `gymq run`: prepare the run's record, start the other processes, watch, stop in order.

Messages take the same path as with workers started by hand; this process only enqueues the rows and watches. First of all
stands the file of finished rollouts: what it holds is never done again, whatever Redis says.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from itertools import islice
from typing import Any

from gymq.client.rollout_set import RolloutSet
from gymq.errors import GymqError, ServerUnreachable, UsageError
from gymq.local.launch import SINK, children
from gymq.local.preflight import Preflight
from gymq.local.progress import RunProgress
from gymq.local.run_dir import RunDir
from gymq.local.run_options import RunOptions
from gymq.local.source_ranges import produce, source_ranges
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.process.supervisor import Supervisor
from gymq.settings import Settings
from gymq.store import runs
from gymq.store.connection import Outage
from gymq.store.run_status import RunStatus
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards
from gymq.wire.ids import RolloutId
from gymq.wire.pricing import Prices

#: The name under which the run's own sink reads.
CONSUMER = "jsonl"

#: Seconds between two looks at the children.
POLL_INTERVAL = 0.1

#: Seconds between two looks at the run's numbers.
STATUS_PERIOD = 0.5

#: Seconds that the producer may take to notice that it is to stop: reading a row of a slow source.
PRODUCER_LIMIT = 5.0

#: Times that the embedded server is started again before the run is given up.
SERVER_STARTS = 5

#: Ids in one command.
_BATCH = 1000


class RunSession:
    """One `gymq run`, from the moment its place is locked.

    Args:
        request: the options.
        config: the run.
        source: what the data are called in the run's ledger.
        survey: what the rows are.
        kept: the rollouts that the file has.
        place: where things are.
    """

    def __init__(
        self, request: RunOptions, config: RunConfig, source: str, survey: Preflight, kept: RolloutSet, place: RunDir
    ) -> None:
        self._request = request
        self._config = config
        self._source = source
        self._survey = survey
        self._kept = kept
        self._place = place
        self._parts: list[tuple[int, int | None]] = []
        #: Whether a process died meanwhile: then the logs are worth keeping.
        self.troubled = False
        #: How far the run was when it was last looked at.
        self.status: RunStatus | None = None

    @property
    def total(self) -> int:
        """Rollouts that the file will have."""
        return max(self._survey.rows * self._config.samples, self.status.total if self.status else 0, len(self._kept))

    @property
    def samples(self) -> int:
        """Rollouts of each task."""
        return self._config.samples

    @property
    def prices(self) -> Prices | None:
        """What tokens cost."""
        return self._config.prices

    def go(self) -> int:
        """Run until all rollouts have ended, or a signal comes.

        Returns:
            The signal that stopped it, 0 if it ran to its end.

        Raises:
            GymqError: it cannot go on.
        """
        server = None
        if self._request.redis is None:
            server = EmbeddedRedis(self._place.server)
            server.start()
        try:
            settings = Settings.from_environment(redis_url=self._request.redis if server is None else server.url)
            # The Celery app, by which rows are announced, is made of the environment's settings.
            os.environ.update(settings.environment())
            asyncio.run(self._prepare(settings))
            with RunProgress(self._config.name, self.total, len(self._kept)) as progress:
                return self._work(settings, server, progress)
        finally:
            if server is not None:
                server.stop()

    async def _prepare(self, settings: Settings) -> None:
        """Bring the run's record in line with the file of finished rollouts."""
        name = self._config.name
        async with Shards(settings, "gymq-run") as shards:
            if await self._usable(shards):
                await shards.create(self._config)
                await shards.reopen(name)
            else:
                for connection in shards.connections:
                    with suppress(GymqError):
                        await runs.remove(connection, name)
                await shards.create(self._config)
                for shard, connection in enumerate(shards.connections):
                    ids = (rid for rid in self._kept if RolloutId.parse(rid).shard(len(shards.connections)) == shard)
                    while batch := list(islice(ids, _BATCH)):
                        await connection.send("SADD", connection.keys.skip(name), *batch)
            self._parts = await source_ranges(shards.first, name, self._source, self._request.limit)
            to = str(self._place.out.absolute())
            await shards.each(lambda connection: connection.send("HSET", connection.keys.run(name), f"to:{CONSUMER}", to))
            # Before the first rollout ends: what a consumer that comes later has missed is gone.
            await shards.declare(name, CONSUMER)

    async def _usable(self, shards: Shards) -> bool:
        """Whether Redis has a record of this run that can be continued.

        Raises:
            UsageError: the run goes to another file.
        """
        name, place = self._config.name, str(self._place.out.absolute())
        fields = ("state", f"acked:{CONSUMER}", "n:kept", f"to:{CONSUMER}")
        told = await shards.each(lambda connection: connection.send("HMGET", connection.keys.run(name), *fields))
        states = {state for state, *_ in told}
        to = next((to for *_, to in told if to is not None), None)
        # A server of our own lies beside the file and moves with it; on a shared one somebody else may be at it.
        if self._request.redis and states & {b"open", b"closed", b"cancelled"} and to not in (None, place.encode()):
            raise UsageError(f"run {name!r} on this server writes to {to.decode()}; use that --out, or `gymq rm {name}` first")
        # A rollout is acknowledged after it stands in the file. If fewer stand there, somebody took some away: again, then.
        acknowledged = sum(int(count or 0) for _, acked, kept, _ in told for count in (acked, kept))
        return states <= {b"open", b"closed"} and acknowledged <= len(self._kept)

    def _work(self, settings: Settings, server: EmbeddedRedis | None, progress: RunProgress) -> int:
        logs = self._place.logs
        models = {self._config.model: self._request.backend_options}
        if self._config.judge:
            models.setdefault(self._config.judge, self._request.judge_options)
        specs = children(settings, self._config, models, self._survey.specs(), self._place.out, logs)
        supervisor = Supervisor(specs)
        producer = _ProducerThread(
            settings, self._config, self._request.data, self._source, self._parts, prompt=self._request.prompt
        )
        supervisor.start()
        try:
            producer.start()
            stopped = asyncio.run(self._watch(settings, supervisor, producer, server, progress))
            signal.signal(signal.SIGTERM, terminate)
            if stopped:
                progress.say("stopping: calls in flight may end (again to stop at once)")
            return stopped
        finally:
            producer.stop()
            supervisor.stop()

    async def _watch(
        self,
        settings: Settings,
        supervisor: Supervisor,
        producer: _ProducerThread,
        server: EmbeddedRedis | None,
        progress: RunProgress,
    ) -> int:
        """Look after everything until the sink is finished or a signal comes; returns the signal, or 0."""
        stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, _once, stop, number)
        starts, due = 0, 0.0
        async with Shards(settings, "gymq-watch") as shards:
            while not stop.done():
                for event in supervisor.poll():
                    if event != f"{SINK}: finished":
                        self.troubled = True
                        progress.say(event)
                producer.check()
                over = SINK in supervisor.finished
                if server is not None and not server.alive:
                    starts += 1
                    if starts > SERVER_STARTS:
                        raise GymqError(f"the server died {starts} times; see {self._place.server / 'server.log'}")
                    self.troubled = True
                    progress.say("server: died; starting it again")
                    await asyncio.to_thread(server.start)
                if over or time.monotonic() >= due:
                    due = time.monotonic() + STATUS_PERIOD
                    before = self.status.ended if self.status else 0
                    await self._look(shards, progress, over)
                    if self.status and self.status.ended != before:
                        supervisor.forgive()  # deaths that the run survives are no reason to give up
                    if producer.over and self.status is not None and self.status.state == "open":
                        # Its last word was that there are no more rows: Redis has lost it, and perhaps rows before it.
                        producer.start()
                if over:
                    return 0
                await asyncio.wait([stop], timeout=POLL_INTERVAL)
            return stop.result()

    async def _look(self, shards: Shards, progress: RunProgress, last: bool) -> None:
        try:
            self.status = await shards.status(self._config.name)
            progress.show(self.status, last)
        except Outage:
            with suppress(TimeoutError):
                await asyncio.wait_for(shards.reconnect(), STATUS_PERIOD)


class _ProducerThread:
    """The producer in a thread of its own: reading and parsing rows must not hold up the watch.

    Args:
        arguments, named: as for `produce`.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._arguments = arguments
        self._named = named
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread()

    def start(self) -> None:
        """Begin, or begin again: what is enqueued already is passed over."""
        self._thread = threading.Thread(target=self._live, name="gymq-producer", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether it has enqueued everything."""
        return self._thread.ident is not None and not self._thread.is_alive() and self._failure is None

    def check(self) -> None:
        """Raise what ended it, if something did."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End it; what it has enqueued stays."""
        self._stopped.set()
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._task.cancel)
        if self._thread.ident is not None:
            self._thread.join(PRODUCER_LIMIT)

    def _live(self) -> None:
        async def work() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            await produce(*self._arguments, **self._named)

        while not self._stopped.is_set():
            try:
                return asyncio.run(work())
            except asyncio.CancelledError:
                return
            except ServerUnreachable:
                self._stopped.wait(STATUS_PERIOD)  # it comes back, or the watch gives up
            except Exception as error:
                self._failure = error
                return


def _once(stop: asyncio.Future[int], number: int) -> None:
    if not stop.done():
        stop.set_result(number)


def terminate(number: int, _frame: object) -> None:
    """Handle SIGTERM where nothing better does: let `finally` clauses stop what was started."""
    raise SystemExit(128 + number)
