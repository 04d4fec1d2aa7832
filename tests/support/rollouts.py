"""Real runs for tests: worker processes, tasks that are rolled out, and results made without any worker.

workers = Workers(spawn, settings, tmp_path).start_all(model="scripted")     # agent, model and resource, registered
produce(settings, RunConfig("r", "weather", "tool", "scripted"), weather(10), consumers=["sink"])
wait_for_state(settings, "r", "done")
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from gymq.celery import worker_command
from gymq.client.producer import Produced, Producer
from gymq.ops.dead_letters import StoredLetter, list_letters
from gymq.settings import Settings
from gymq.store import runs, scripts
from gymq.store.admission import ADMIT, BACKLOG_BYTES, BEGIN_MS, INLINE, SKIP
from gymq.store.connection import Connection
from gymq.store.run_status import RunStatus
from gymq.store.runs import RunConfig
from gymq.store.scripts import AckOutcome
from gymq.store.sharded import Shards
from gymq.wire.consumer_member import ConsumerMember, Epoch
from gymq.wire.ids import RolloutAddress, RolloutId, place
from tests.support.shard import keys
from tests.support.waiting import wait_until

#: Seconds until a worker process stands in the registry; it takes 1 s on an idle machine.
START_LIMIT = 30.0

#: Seconds until a run of a few rollouts is where a test wants it.
RUN_LIMIT = 30.0

#: Options without which a role does nothing; a test's own come first.
DEFAULTS: dict[str, dict[str, Any]] = {"model": {"model": "scripted"}}


async def letters(settings: Settings) -> list[StoredLetter]:
    """All dead letters."""
    async with Shards(settings, "test") as shards:
        return await list_letters(shards)


# Workers.


def start_worker(
    spawn: Callable[..., subprocess.Popen[bytes]],
    settings: Settings,
    role: str,
    name: str = "",
    log: Path | None = None,
    env: dict[str, str] | None = None,
    processes: int = 2,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a worker process; see `wait_for_workers`.

    Args:
        spawn: the fixture.
        settings: where Redis is.
        role: `agent`, `model`, `resource` or `executor`.
        name: what Celery calls it; the role if not given.
        log: the file that gets its output; nothing keeps it if not given.
        env: further variables, `PYTHONPATH` of a plugin above all.
        processes: of an executor: how many calls run at once.
        options: the role's options; a model worker serves `scripted` unless told otherwise.
    """
    argv, environment = worker_command.command(
        settings, role, DEFAULTS.get(role, {}) | options, name or role, processes=processes
    )
    output = subprocess.DEVNULL if log is None else log.open("ab")
    return spawn(argv, environment | (env or {}), stdout=output, stderr=subprocess.STDOUT)


def registered(settings: Settings) -> dict[str, dict[str, Any]]:
    """The workers in the registry that are not declared dead, with what they say of themselves (role, pid, mailboxes)."""
    flat = with_link(settings, lambda connection: connection.send("HGETALL", connection.keys.workers))
    found = zip(flat[::2], flat[1::2], strict=True)
    return {name.decode(): msgspec.json.decode(info) for name, info in found if not info.startswith(b"dead")}


def wait_for_workers(settings: Settings, count: int) -> None:
    """Wait until so many workers read mailboxes; an executor has no actor and never does."""
    wait_until(
        lambda: sum(bool(info["mailboxes"]) for info in registered(settings).values()) >= count,
        START_LIMIT,
        f"{count} workers in the registry",
    )


class Workers:
    """The worker processes of one test, each with a log in its folder.

    Args:
        spawn: the fixture.
        settings: where Redis is.
        folder: where their logs go.
        env: further variables of all of them.
    """

    def __init__(self, spawn: Any, settings: Settings, folder: Path, env: dict[str, str] | None = None) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._spawn = spawn
        self._settings = settings
        self._folder = folder
        self._env = env

    def start(self, role: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start one more worker of a role, under the name `<role><number>`."""
        name = f"{role}{sum(other.startswith(role) for other in self.processes)}"
        log = self._folder / f"{name}.log"
        process = start_worker(self._spawn, self._settings, role, name, log, self._env, **options)
        self.processes[name] = process
        return process

    def start_all(self, model: str = "scripted", **options: Any) -> Workers:
        """Start an agent, a model and a resource worker, and wait until they take mail.

        Args:
            model: what the model worker serves.
            options: of the model worker.
        """
        before = len(registered(self._settings))
        self.start("agent")
        self.start("model", model=model, **options)
        self.start("resource")
        wait_for_workers(self._settings, before + 3)
        return self

    def log(self, name: str) -> str:
        """What a worker has printed so far."""
        return (self._folder / f"{name}.log").read_text()

    def stop(self) -> None:
        """Let all of them drain and end; each must end well."""
        for process in self.processes.values():
            process.terminate()
        for name, process in self.processes.items():
            assert process.wait(40) == 0, self.log(name)


# Tasks and runs.


def weather(count: int, **fields: Any) -> list[dict[str, Any]]:
    """Rows of the environment `weather`: two answers of the model and one tool call each."""
    return [{"id": f"w{i}", "prompt": f"What is the weather in city{i}?", **fields} for i in range(count)]


def produce(
    settings: Settings,
    config: RunConfig,
    rows: Iterable[Any],
    *,
    source: str = "rows",
    consumers: Iterable[str] = (),
    last: bool = True,
    **options: Any,
) -> Produced:
    """Enqueue rows with a `Producer`; its other arguments may be given."""
    producer = Producer(settings, config, source, **options)
    places = ((f"{source}:{i}", row) for i, row in enumerate(rows, 1))
    return asyncio.run(producer.run(places, consumers=consumers, last=last))


def run_tasks(
    settings: Settings, config: RunConfig, rows: Iterable[Any], consumers: Iterable[str] = ("test",), limit: float = RUN_LIMIT
) -> RunStatus:
    """Enqueue rows and wait until all their rollouts have ended; workers run already, consumers read afterwards."""
    produce(settings, config, rows, consumers=consumers)
    wait_until(lambda: (s := status(settings, config.name)).ended == s.total, limit, f"the end of run {config.name}")
    return status(settings, config.name)


def status(settings: Settings, name: str) -> RunStatus:
    """How far a run is, over all shards."""
    return with_shards(settings, lambda shards: shards.status(name))


def with_shards(settings: Settings, what: Callable[[Shards], Awaitable[Any]]) -> Any:
    """Do something with all shards, from a test that has no loop."""

    async def go() -> Any:
        async with Shards(settings, "test") as shards:
            return await what(shards)

    return asyncio.run(go())


def wait_for_state(settings: Settings, name: str, state: str, limit: float = RUN_LIMIT) -> None:
    """Wait until a run is `closed`, `cancelled` or `done`."""
    wait_until(lambda: status(settings, name).state == state, limit, f"run {name} to be {state}")


def ask(settings: Settings, *command: Any) -> Any:
    """Send Redis one command; the raw reply."""
    return with_link(settings, lambda connection: connection.send(*command))


def with_link(settings: Settings, what: Callable[[Connection], Awaitable[Any]]) -> Any:
    """Do something with a connection, from a test that has no loop."""

    async def go() -> Any:
        async with linked(settings) as connection:
            return await what(connection)

    return asyncio.run(go())


@asynccontextmanager
async def linked(settings: Settings) -> AsyncIterator[Connection]:
    """A connection, for a test that has a loop."""
    connection = Connection(settings, "test")
    await connection.connect()
    try:
        yield connection
    finally:
        await connection.close()


# Results without workers: the scripts are real, the agent is a stand-in.


#: When the runs of tests were created, seconds; it makes their incarnation.
BORN = 1.0


def address(id: str) -> str:
    """The address of a rollout whose run was created at `BORN`."""
    return str(RolloutAddress(RolloutId.parse(id), RunConfig("", "", "", "", created=BORN).incarnation))


class Pretender:
    """Does what agent workers do to a run, as the scripts see it: admits rollouts and ends them as the test says.

    Args:
        connection: a connection.
        config: the run; `create` makes it.
    """

    def __init__(self, connection: Connection, config: RunConfig) -> None:
        self.connection = connection
        self.config = msgspec.structs.replace(config, created=config.created or BORN)
        self.live: list[str] = []
        self._chunk = 0

    async def create(self, *consumers: str) -> None:
        """Create the run and declare its consumers."""
        await runs.create(self.connection, self.config)
        for consumer in consumers:
            await self.connection.run(scripts.declare_consumer(self.config.name, consumer))

    async def enqueue(self, rows: int) -> None:
        """Write rows into the ledger, without content."""
        self._chunk += 1
        assert await self.connection.run(scripts.enqueue(self.config.name, self._chunk, 1 << 60, [b"task"] * rows)) == rows

    async def admit(self, most: int = ADMIT) -> int:
        """Admit what credits allow, at most so many; they stand in `live`, in order."""
        admission = await self.connection.run(scripts.admit(most, INLINE, SKIP, BACKLOG_BYTES, BEGIN_MS))
        mailbox = keys.mailbox("agent")
        for entry, fields in await self.connection.send("XRANGE", mailbox, "-", "+"):
            self.live.append(place(fields[1].decode()))
            await self.connection.send("XDEL", mailbox, entry)
        return admission.admitted

    async def end(self, *rollouts: str, status: str = "completed", **fields: Any) -> None:
        """End rollouts that are live, in one commit, in this order; `fields` are of their records."""
        commits: list[scripts.CommitStep] = []
        for rid in rollouts:
            name, row, _ = RolloutId.parse(rid)
            record = finished(rid, status=status, **fields)
            for field in ("seq", "messages", "calls"):  # the script adds these
                del record[field]
            final = scripts.RolloutEnd(name, row, self.config.samples, status, msgspec.json.encode(record)[:-1])
            commits.append(
                scripts.CommitStep(str(RolloutAddress(RolloutId.parse(rid), self.config.incarnation)), 0, final=final)
            )
            self.live.remove(rid)
        assert await self.connection.run(scripts.commit(commits)) == [scripts.CommitOutcome.APPLIED] * len(rollouts)

    async def finish(self, count: int, *, close: bool = True) -> None:
        """Enqueue that many rows, and end all rollouts in order."""
        await self.enqueue(count)
        while await self.admit():
            await self.end(*self.live)
        if close:
            await runs.close(self.connection, self.config.name)


async def acknowledge(connection: Connection, run: str, consumer: str, entries: list[bytes], ttl: int = 60) -> AckOutcome:
    """Acknowledge entries of a run's results, as a process that has just become the consumer's one member."""
    member = ConsumerMember(run, consumer, "0", Epoch.after(None))
    joined = await connection.run(scripts.join_consumer(member))
    assert joined is not None and joined.number is not None
    return await connection.run(scripts.ack(member._replace(epoch=member.epoch._replace(number=joined.number)), ttl, entries))


def finished(rid: str, **fields: Any) -> dict[str, Any]:
    """A finished rollout as it stands in results; `fields` replace its own."""
    name, row, sample = RolloutId.parse(rid)
    record: dict[str, Any] = {
        "rollout_id": rid,
        "run": name,
        "environment": "weather",
        "agent": "tool",
        "model": "scripted",
        "task_id": str(row),
        "group_id": f"{name}.{row}",
        "sample": sample,
        "status": "completed",
        "stop": None,
        "reward": 1.0,
        "no_reward": None,
        "rewards": {},
        "turns": 0,
        "tool_calls": 0,
        "usage": dict.fromkeys(("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"), 0),
        "error": None,
        "task": {},
        "metrics": {},
        "started_at": 1.0,
        "finished_at": 2.0,
        "model_name": "scripted",
        "versions": None,
        "seq": 0,
        "messages": [],
        "calls": [],
    }
    return record | fields


async def make_run(connection: Connection, name: str = "r", rows: int = 0, **fields: Any) -> Pretender:
    """A run with its consumer and some rows."""
    pretender = Pretender(connection, RunConfig(name, "weather", "tool", "scripted", **fields))
    await pretender.create("sink")
    if rows:
        await pretender.enqueue(rows)
    return pretender
