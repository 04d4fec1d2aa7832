"""A run's counters, read from one shard and merged over all."""

from __future__ import annotations

from collections import Counter

import msgspec

from gymq.errors import UnknownName
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig
from gymq.wire.calls import Usage

#: Fields of a model's usage that a run counts, each in `u:<field>:<spec>` of its record.
TOKENS = ("input_tokens", "output_tokens", "cached_tokens")

#: States by precedence: a run whose shards differ is in the first of these that a shard is in.
_STATES = ("cancelled", "open", "closed", "done")


class RunStatus(msgspec.Struct):
    """The progress of a run.

    Args:
        state: `open`, `closed`, `cancelled` or `done`.
        rows: tasks enqueued.
        admitted: rollouts started.
        ended: rollouts that ended, however.
        live: rollouts in flight.
        by_status: rollouts that ended, by status.
        unread: finished rollouts that each consumer has not acknowledged.
        paused: nothing more of it is admitted for the time being.
        failures: rollouts that failed, by the kind of their fault.
        bounded: its admission is bounded by the guard of a `gymq run`.
        stopped: why its guard has stopped it; "": it has not.
        tokens: those of rollouts that have ended, by the model's SPEC; a judge's stand under its own.
    """

    config: RunConfig
    state: str
    rows: int
    admitted: int
    ended: int
    live: int
    by_status: dict[str, int]
    unread: dict[str, int]
    paused: bool = False
    tokens: dict[str, Usage] = {}
    failures: dict[str, int] = {}
    bounded: bool = False
    stopped: str = ""

    @property
    def total(self) -> int:
        """Rollouts that the rows enqueued so far stand for."""
        return self.rows * self.config.samples


async def read_status(connection: Connection, name: str) -> RunStatus:
    """Read a run's progress from one shard.

    Args:
        connection: a connection to the shard.
        name: the run's name.

    Raises:
        UnknownName: there is no such run.
    """
    flat = await connection.send("HGETALL", connection.keys.run(name))
    fields = {k.decode(): v for k, v in zip(flat[::2], flat[1::2], strict=True)}
    if "config" not in fields:
        raise UnknownName(f"no run {name!r}; `gymq status` lists the runs")
    unread = await connection.run(scripts.consumer_lag(name))
    return RunStatus(
        config=msgspec.json.decode(fields["config"], type=RunConfig),
        state=fields.get("state", b"open").decode(),  # a run that is being created has none yet
        rows=int(fields.get("rows", 0)),
        admitted=int(fields.get("cursor", 0)),
        ended=int(fields.get("ended", 0)),
        live=await connection.send("SCARD", connection.keys.live(name)),
        by_status={k[2:]: int(v) for k, v in sorted(fields.items()) if k.startswith("n:")},
        unread=unread,
        paused="paused" in fields,
        tokens=_tokens(fields),
        failures={k[2:]: int(v) for k, v in sorted(fields.items()) if k.startswith("f:")},
        bounded="cap" in fields or "quota" in fields,
        stopped=fields.get("stopped", b"").decode(errors="replace"),
    )


def _tokens(fields: dict[str, bytes]) -> dict[str, Usage]:
    usages: dict[str, Usage] = {}
    for field, value in sorted(fields.items()):
        kind, _, rest = field.partition(":")
        name, _, spec = rest.partition(":")
        if kind == "u" and name in TOKENS:
            setattr(usages.setdefault(spec, Usage()), name, int(value))
    return usages


def merge(parts: list[RunStatus]) -> RunStatus:
    """Return the status of a run, from those of its shards."""
    if len(parts) == 1:
        return parts[0]
    by_status, unread, failures = Counter[str](), Counter[str](), Counter[str]()
    for part in parts:
        by_status.update(part.by_status)
        unread.update(part.unread)
        failures.update(part.failures)
    tokens: dict[str, Usage] = {}
    for part in parts:
        for spec, usage in part.tokens.items():
            tokens.setdefault(spec, Usage()).add(usage)
    return RunStatus(
        config=parts[0].config,
        state=next(state for state in _STATES if any(part.state == state for part in parts)),
        rows=sum(part.rows for part in parts),
        admitted=sum(part.admitted for part in parts),
        ended=sum(part.ended for part in parts),
        live=sum(part.live for part in parts),
        by_status=dict(sorted(by_status.items())),
        unread=dict(unread),
        paused=any(part.paused for part in parts),
        tokens=tokens,
        failures=dict(sorted(failures.items())),
        bounded=any(part.bounded for part in parts),
        stopped=next((part.stopped for part in parts if part.stopped), ""),
    )
