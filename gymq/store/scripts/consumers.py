"""Scripts of the consumers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import msgspec

from gymq.store.scripts.script import ScriptCall
from gymq.wire.consumer_member import ConsumerMember


def declare_consumer(run: str, consumer: str) -> ScriptCall[int | None]:
    """Declare a consumer; the reply is how many finished rollouts it will not see, None if there is no such run.

    Args:
        run: the run's name.
        consumer: the consumer's name.
    """
    return ScriptCall("declare_consumer", (run, consumer), lambda missed: None if missed < 0 else int(missed))


def drop_consumer(run: str, consumer: str) -> ScriptCall[bool]:
    """Forget a consumer; False: there is none.

    Args:
        run: the run's name.
        consumer: the consumer's name.
    """
    return ScriptCall("drop_consumer", (run, consumer), bool)


class JoinOutcome(msgspec.Struct):
    """The outcome of joining a consumer.

    Args:
        number: of the epoch that has begun; None: refused, for the consumer's file is elsewhere.
        place: where its file was before, as `host:path`; empty: nowhere.
        acked: rollouts that the consumer has acknowledged.
        kept: the newest rollout there is one of an earlier life of the run.
    """

    number: int | None
    place: str
    acked: int
    kept: bool


def join_consumer(member: ConsumerMember, place: str = "", held: int = -1, newest: str = "") -> ScriptCall[JoinOutcome | None]:
    """Make a process a member of a consumer; None: there is no such consumer.

    Args:
        member: the member; its epoch has the least number that it may get.
        place: where it writes, as `host:path`; empty: it is no file sink.
        held: rollouts that stand there; -1: not known.
        newest: the one of them with the highest commit number.
    """
    run, consumer, name, epoch = member
    return ScriptCall(
        "join_consumer",
        (run, consumer, name, epoch.number, epoch.token, place, held, newest),
        lambda reply: None if reply[0] < 0 else JoinOutcome(reply[0] or None, reply[1].decode(), reply[2], bool(reply[3])),
    )


class AckOutcome(IntEnum):
    """The state of the run after an acknowledgement, or the reason for which there was none."""

    #: Redis lost the epoch: the process has to join again.
    EPOCH_LOST = -3
    #: Another process is the member now.
    REPLACED = -2
    UNKNOWN_CONSUMER = -1
    RUN_GOES_ON = 0
    RUN_DONE = 1


def ack(member: ConsumerMember, ttl: int, entries: Sequence[bytes]) -> ScriptCall[AckOutcome]:
    """Acknowledge finished rollouts, and trim what all consumers have acknowledged.

    Args:
        member: who has them; `OPERATOR`: no process has, and there are no entries.
        ttl: seconds for which the run is kept once it is done.
        entries: ids of the rollouts' entries in the results.
    """
    run, consumer, name, epoch = member
    return ScriptCall("ack", (run, consumer, ttl, name, str(epoch), *entries), AckOutcome)


def consumer_lag(run: str) -> ScriptCall[dict[str, int]]:
    """Count what each consumer of a run has not acknowledged."""
    return ScriptCall(
        "consumer_lag",
        (run,),
        lambda flat: {name.decode(): count for name, count in zip(flat[::2], flat[1::2], strict=True)},
    )


class Standing(IntEnum):
    """The standing of a member, by its epoch."""

    EPOCH_LOST = -3
    REPLACED = -2
    UNKNOWN_CONSUMER = -1
    MEMBER = 0


class MemberProgress(msgspec.Struct):
    """The progress of a run, as a member of a consumer needs it.

    Args:
        state: the run's state; None: there is no such run.
        rows: rows enqueued.
        samples: rollouts of each row.
        ended: rollouts that have ended.
        live: rollouts in flight.
        standing: how the member stands.
        pending: rollouts that were delivered to the member, in whatever epoch, and not acknowledged.
    """

    state: str | None
    rows: int
    samples: int
    ended: int
    live: int
    standing: Standing
    pending: int


def _decode_progress(reply: list[Any]) -> MemberProgress:
    state, rows, samples, ended, live, standing, pending = reply
    return MemberProgress(state and state.decode(), rows, samples, ended, live, Standing(standing), pending)


def member_progress(member: ConsumerMember) -> ScriptCall[MemberProgress]:
    """Read how far a run is, and how a member of a consumer stands."""
    run, consumer, name, epoch = member
    return ScriptCall(
        "member_progress",
        (run, consumer, name, str(epoch)),
        _decode_progress,
    )
