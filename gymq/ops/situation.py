"""The situation of a run: all that tells what it waits for, read from Redis."""

from __future__ import annotations

import msgspec

from gymq import plugins
from gymq.api.environment import EnvironmentSpec
from gymq.celery.queues import EXECUTOR
from gymq.ops.mailboxes import Mailbox, executor_queue, private_mailboxes, read_mailbox
from gymq.ops.workforce import Workforce, read_workforce
from gymq.store import scripts
from gymq.store.run_status import RunStatus
from gymq.store.scripts import RateLimitStatus
from gymq.store.sharded import Shards


class Situation(msgspec.Struct):
    """The situation of a run that is not over.

    Args:
        run: its progress.
        mailboxes: those without whose workers it stands still, `executor` perhaps among them; by name.
        workforce: the live workers of the installation, which other runs may keep busy too.
        limits: the rate limits that were used of late.
        paused: no rollouts of any run are admitted.
        attended: the one who asks has started the workers itself, so that missing ones are on their way: the option by which
            others find its server, `--of OUT`, or "" if they need none; None: it has not.
        private: messages in the private mailboxes of workers.
    """

    run: RunStatus
    mailboxes: dict[str, Mailbox]
    workforce: Workforce
    limits: list[RateLimitStatus] = []
    paused: bool = False
    attended: str | None = None
    private: int = 0


async def read_situation(shards: Shards, run: RunStatus, attended: str | None = None) -> Situation:
    """Read the situation of a run.

    Args:
        shards: connections to all shards.
        run: its progress.
        attended: as of `Situation`.

    Raises:
        Outage: a connection broke.
    """
    workforce = await read_workforce(shards)
    mailboxes = [await read_need(shards, need, workforce) for need in await needs(shards, run)]
    by_name = {box.name: box for box in mailboxes}
    limits, paused = await rate_limits(shards), await admission_paused(shards)
    private = sum(box.waiting + box.taken for boxes in await shards.each(private_mailboxes) for box in boxes)
    return Situation(run, by_name, workforce, limits, paused, attended, private)


async def needs(shards: Shards, run: RunStatus) -> list[str]:
    """Return the mailboxes, and perhaps `executor`, without which a run stands still.

    Args:
        shards: all shards.
        run: the run's name.
    """
    found = ["agent", *(f"model:{spec}" for spec in (run.config.model, run.config.judge) if spec)]
    for fields in await shards.each(lambda connection: connection.send("HGETALL", connection.keys.run(run.config.name))):
        for field, value in zip(fields[::2], fields[1::2], strict=True):
            if field.startswith(b"spec:"):
                spec = msgspec.json.decode(value, type=EnvironmentSpec)
                found += [f"resource:{spec.name}", *([EXECUTOR] if spec.needs_executor else [])]
    return list(dict.fromkeys(found))


async def read_need(shards: Shards, need: str, workforce: Workforce) -> Mailbox:
    """Return a mailbox, or the executors' queue.

    Args:
        shards: connections to all shards.
        need: the mailbox, or `executor`.
        workforce: who reads it.
    """
    readers = workforce.readers.get(need, 0)
    return await (executor_queue(shards, readers) if need == EXECUTOR else read_mailbox(shards, need, readers))


async def rate_limits(shards: Shards) -> list[RateLimitStatus]:
    """Return the rate limits that were used of late."""
    return await shards.first.run(scripts.read_rate_limits())


async def admission_paused(shards: Shards) -> bool:
    """Return whether no rollouts of any run are admitted."""
    return any(await shards.each(lambda connection: connection.send("EXISTS", connection.keys.paused)))


def remedy(need: str, attended: str | None = None) -> str:
    """Return the command that starts a worker which serves a mailbox, or an executor.

    Args:
        need: the mailbox, or `executor`.
        attended: as of `Situation`.
    """
    role, _, name = need.partition(":")
    # A process that has loaded an environment from a file knows where others find it.
    options = {"model": f"--model {name}", "resource": f"--environments {plugins.environment_source(name) or name}"}
    return f"`{' '.join(filter(None, ('gymq worker', role, options.get(role), attended)))}`"
