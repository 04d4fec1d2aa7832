"""A run: one set of tasks, rolled out with one agent and one model; its record in Redis and its life cycle.

open -> closed (its producer said that there are no more rows) -> done (all ended, all consumers acknowledged all);
cancelled takes the place of closed. The rest of a run lapses `ttl` seconds after it is done.
"""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec

from gymq.api.environment import EnvironmentSpec
from gymq.errors import RunClosed, UnknownName, UsageError
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.scripts import CloseOutcome
from gymq.wire.consumer_member import OPERATOR, ConsumerMember, Epoch
from gymq.wire.ids import RUN_NAME, PartId
from gymq.wire.pricing import Prices

_NAME = re.compile(RUN_NAME)

#: Fields in which the same run may differ from what it was: they change no rollout.
_FREE = frozenset({"name", "concurrency", "backlog", "batch", "created", "prices"})


class RunConfig(msgspec.Struct, frozen=True):
    """The definition of a run, fixed when it is created.

    Args:
        name: letters, digits, `_` and `-`.
        environment: of rows that name none.
        agent: the registered name of the agent.
        model: the model's SPEC, which is also the name of its mailbox.
        samples: rollouts of each task; together they are the task's group.
        max_turns: answers of the model after which a rollout is truncated.
        max_rollout_tokens: input and output tokens of all its answers after which it is truncated; 0: no limit, here and below.
        max_seconds: seconds since its first step after which it is truncated, whatever it waits for.
        max_working_seconds: seconds that its calls have taken, without waits, after which it is truncated.
        max_tool_calls: tool calls that it may make; it is truncated at the next one.
        call_timeout: seconds that one answer of a model may take; 0: the backend's own limit.
        infra_retries: how often a rollout repeats calls after transient faults, such as a service that does not answer.
        data_retries: how often it does so after any other fault.
        verify_retries: how often `verify` is repeated after transient faults.
        judge: SPEC of the model that answers an `Ask` which names none; empty: the run's model.
        concurrency: rollouts in flight at once.
        backlog: finished rollouts that the slowest consumer may be behind before admission waits.
        max_staleness: how many policy versions the oldest token of a rollout may be behind its model; None: no limit.
        batch: rollouts that a trainer uses for one policy version; with `max_staleness` it bounds how many are begun before
            it needs them. 0: unknown; nothing is bounded by it.
        sampling: sampling parameters for every request, under chat-completions names; a row's own come first.
        created: seconds since the epoch; `create` sets it.
        prices: prices of tokens; None: unknown.
    """

    name: str
    environment: str
    agent: str
    model: str
    samples: int = 1
    max_turns: int = 30
    max_rollout_tokens: int = 0
    max_seconds: float = 0.0
    max_working_seconds: float = 0.0
    max_tool_calls: int = 0
    call_timeout: float = 0.0
    infra_retries: int = 8
    data_retries: int = 0
    verify_retries: int = 10
    judge: str = ""
    concurrency: int = 256
    backlog: int = 10_000
    max_staleness: int | None = None
    batch: int = 0
    sampling: dict[str, Any] = {}
    created: float = 0.0
    prices: Prices | None = None

    @property
    def incarnation(self) -> str:
        """The mark that distinguishes it from other runs that have or had its name: the microsecond at which it was created."""
        return f"{round(self.created * 1e6):x}"

    @property
    def ahead(self) -> int:
        """Rollouts that may be in flight or unused together, so that none is too old when it is used; 0: no limit."""
        return 0 if self.max_staleness is None else (self.max_staleness + 1) * self.batch


def check_name(name: str) -> None:
    """Check a run's name.

    Raises:
        UsageError: it has another form.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"run name {name!r}: use 1 to 100 letters, digits, '_' or '-', beginning with a letter or digit")


async def create(connection: Connection, config: RunConfig) -> bool:
    """Create a run, or find it as it was created.

    Args:
        connection: a connection; its shard gets its part of the concurrency and of the backlog.
        config: the run's definition.

    Returns:
        True if it is new.

    Raises:
        UsageError: a run of that name exists and is another one.
    """
    check_name(config.name)
    config = config if config.created else msgspec.structs.replace(config, created=time.time())
    shards = connection.shards
    fields: list[str | int] = ["samples", config.samples, "concurrency", -(-config.concurrency // shards)]
    fields += ["backlog", -(-config.backlog // shards), "ahead", -(-config.ahead // shards)]
    if shards > 1:
        fields += ["shards", shards, "shard", connection.shard]
    new, there = msgspec.json.encode(config), config
    while True:
        definition = new if there is config else b""
        made = await connection.run(scripts.create_run(config.name, there.incarnation, definition, there.created, fields))
        if isinstance(made, bool):
            return made
        there = config if made is None else msgspec.json.decode(made, type=RunConfig)  # None: it was removed just now
        _compare(config, there)


def _compare(config: RunConfig, there: RunConfig) -> None:
    for field in config.__struct_fields__:
        if field not in _FREE and getattr(there, field) != getattr(config, field):
            raise UsageError(
                f"run {config.name!r} exists with {field}={getattr(there, field)!r}, not {getattr(config, field)!r}; "
                "choose another name, or `gymq rm` it"
            )


async def load_config(connection: Connection, name: str) -> RunConfig:
    """Read a run's definition.

    Args:
        connection: a connection.
        name: the run's name.

    Raises:
        UnknownName: there is no such run.
    """
    data = await connection.send("HGET", connection.keys.run(name), "config")
    if data is None:
        raise UnknownName(f"no run {name!r}; `gymq status` lists the runs")
    return msgspec.json.decode(data, type=RunConfig)


async def add_environment(connection: Connection, name: str, spec: EnvironmentSpec) -> None:
    """Write an environment's description into the run's record, where agents find it.

    Args:
        connection: a connection.
        name: the run's name.
        spec: the environment's description.
    """
    await connection.send("HSET", connection.keys.run(name), f"spec:{spec.name}", msgspec.json.encode(spec))


async def load_incarnation(
    connection: Connection, name: str, incarnation: str, environment: str
) -> tuple[RunConfig, EnvironmentSpec]:
    """Read a run's definition and an environment's description, of that incarnation.

    Args:
        connection: a connection.
        name: the run's name.
        incarnation: the run's incarnation.
        environment: the environment's name.

    Raises:
        UnknownName: there is no such run or environment; the name may be another run's now.
    """
    config, spec = await connection.send("HMGET", connection.keys.run(name), "config", f"spec:{environment}")
    found = None if config is None else msgspec.json.decode(config, type=RunConfig)
    if found is None or found.incarnation != incarnation:
        raise UnknownName(f"no run {name!r} of incarnation {incarnation}")
    if spec is None:
        raise UnknownName(f"run {name!r} has no environment {environment!r}")
    return found, msgspec.json.decode(spec, type=EnvironmentSpec)


async def close(connection: Connection, name: str) -> None:
    """Say that the run gets no more rows.

    Args:
        connection: a connection.
        name: the run's name.

    Raises:
        RunClosed: it was cancelled.
    """
    if await connection.run(scripts.close_run(name)) is CloseOutcome.REFUSED:
        raise RunClosed(f"run {name!r} was cancelled or removed")


async def reopen(connection: Connection, name: str, elsewhere: bool = False) -> None:
    """Let a closed run take rows again.

    Args:
        connection: a connection.
        name: the run's name.
        elsewhere: the run goes on at another shard: it may be done on this one.

    Raises:
        RunClosed: it was cancelled, or is done.
    """
    created = (await load_config(connection, name)).created if elsewhere else None
    if not await connection.run(scripts.reopen_run(name, created)):
        raise RunClosed(f"run {name!r} was cancelled, removed, or is done")


async def drop_consumer(connection: Connection, name: str, consumer: str, ttl: int) -> None:
    """Forget a consumer: nothing waits for it any more.

    Args:
        connection: a connection.
        name: the run's name.
        consumer: the consumer's name.
        ttl: seconds for which the run is kept if it is done by this.

    Raises:
        UnknownName: there is no such run or consumer.
    """
    await load_config(connection, name)
    others = (await connection.run(scripts.consumer_lag(name))).keys() - {consumer}
    if not await connection.run(scripts.drop_consumer(name, consumer)):
        raise UnknownName(f"run {name!r} has no consumer {consumer!r}; it has {', '.join(sorted(others)) or 'none'}")
    for other in sorted(others)[:1]:
        # Trims, and sees whether the run is done now.
        await connection.run(scripts.ack(ConsumerMember(name, other, OPERATOR, Epoch.after(None)), ttl, []))


async def cancel(connection: Connection, name: str) -> int:
    """Stop admitting rollouts and end those in flight.

    Args:
        connection: a connection.
        name: the run's name.

    Returns:
        How many rollouts were in flight.

    Raises:
        UnknownName: there is no such run.
        RunClosed: it is done.
    """
    await load_config(connection, name)
    live = await connection.run(scripts.cancel_run(name))
    if live is None:
        raise RunClosed(f"run {name!r} is done: nothing is left to cancel")
    return live


async def cancel_some(connection: Connection, name: str, which: list[PartId]) -> tuple[int, int]:
    """End some groups and rollouts of a run that goes on with the others.

    Args:
        connection: a connection.
        name: the run's name.
        which: the groups and rollouts.

    Returns:
        How many rollouts were in flight, and how many had not begun: those end as soon as it is their turn.

    Raises:
        UnknownName: there is no such run, group or rollout; then nothing is cancelled.
        RunClosed: the run, or one of them, has ended; then nothing is cancelled.
    """
    cancelled = await connection.run(scripts.cancel_rollouts(name, which))
    if cancelled.state is None:
        raise UnknownName(f"no run {name!r}; `gymq status` lists the runs")
    if not cancelled.targets:
        raise RunClosed(f"run {name!r} is {cancelled.state}: its rollouts have ended, or end now")
    for part, counts in zip(which, cancelled.targets, strict=True):
        what = f"{'group' if part.sample is None else 'rollout'} {name}.{part}"
        if not counts.total:
            raise UnknownName(f"no {what}; run {name!r} has fewer rows or samples")
        if not counts.live + counts.waiting:
            raise RunClosed(f"{what} has ended: nothing is left to cancel")
    return sum(counts.live for counts in cancelled.targets), sum(counts.waiting for counts in cancelled.targets)


async def pause(connection: Connection, name: str, paused: bool) -> None:
    """Admit no more rollouts of a run, or admit them again; those in flight go on.

    Args:
        connection: a connection.
        name: the run's name.
        paused: False: admit them again.

    Raises:
        UnknownName: there is no such run.
        RunClosed: it was cancelled, or is done.
    """
    await load_config(connection, name)
    state = await connection.send("HGET", connection.keys.run(name), "state")
    if state in (b"cancelled", b"done"):
        raise RunClosed(f"run {name!r} is {state.decode()}: it admits nothing more")
    if paused:
        await connection.send("HSET", connection.keys.run(name), "paused", 1)
    else:
        await connection.send("HDEL", connection.keys.run(name), "paused")


async def bound(connection: Connection, name: str, failures: int | None, rollouts: int | None) -> None:
    """Bound what a run admits from now on, besides its credits; the guard of a `gymq run` does that, and lifts it.

    Args:
        connection: a connection.
        name: the run's name.
        failures: rollouts that may be in flight or fail, on this shard; None: no such bound.
        rollouts: rollouts that may be in flight or end; None: no such bound.
    """
    key = connection.keys.run(name)
    failed, ended, kept = (int(n or 0) for n in await connection.send("HMGET", key, "n:failed", "ended", "n:kept"))
    bounds: dict[str, int] = {}
    if failures is not None:
        bounds["cap"] = failed + failures
    if rollouts is not None:
        bounds["quota"] = ended - kept + rollouts
    await connection.send("HDEL", key, *({"cap", "quota", "stopped"} - bounds.keys()))
    if bounds:
        await connection.send("HSET", key, *(part for pair in bounds.items() for part in pair))


async def stop(connection: Connection, name: str, reason: str) -> None:
    """Admit no more rollouts of a run until `bound` is called: its guard has stopped it.

    Args:
        connection: a connection.
        name: the run's name.
        reason: why, for those who look at the run meanwhile.
    """
    await connection.send("HSET", connection.keys.run(name), "cap", 0, "stopped", reason)


async def remove(connection: Connection, name: str) -> None:
    """Forget a run and all that it holds, results too.

    Args:
        connection: a connection.
        name: the run's name.

    Raises:
        UnknownName: there is no such run.
    """
    await load_config(connection, name)
    await connection.run(scripts.remove_run(name))


async def names(connection: Connection) -> list[str]:
    """Return the names of all runs that Redis knows, oldest first."""
    return [name.decode() for name in await connection.send("ZRANGE", connection.keys.runs, 0, -1)]
