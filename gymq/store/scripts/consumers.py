"""Scripts of the consumers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from gymq.store.scripts.script import ScriptCall


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


class AckOutcome(IntEnum):
    """The state of the run after an acknowledgement."""

    UNKNOWN_CONSUMER = -1
    RUN_GOES_ON = 0
    RUN_DONE = 1


def ack(run: str, consumer: str, ttl: int, entries: Sequence[bytes]) -> ScriptCall[AckOutcome]:
    """Acknowledge finished rollouts, and trim what all consumers have acknowledged.

    Args:
        run: the run's name.
        consumer: the consumer's name.
        ttl: seconds for which the run is kept once it is done.
        entries: ids of the rollouts' entries in the results.
    """
    return ScriptCall("ack", (run, consumer, ttl, *entries), AckOutcome)


def consumer_lag(run: str) -> ScriptCall[dict[str, int]]:
    """Count what each consumer of a run has not acknowledged."""
    return ScriptCall(
        "consumer_lag",
        (run,),
        lambda flat: {name.decode(): count for name, count in zip(flat[::2], flat[1::2], strict=True)},
    )


class RunProgress(msgspec.Struct):
    """The progress of a run, as a consumer needs it.

    Args:
        state: the run's state; None: there is no such run.
        rows: rows enqueued.
        samples: rollouts of each row.
        ended: rollouts that have ended.
        live: rollouts in flight.
    """

    state: str | None
    rows: int
    samples: int
    ended: int
    live: int


def run_progress(run: str) -> ScriptCall[RunProgress]:
    """Read how far a run is."""
    return ScriptCall("run_progress", (run,), lambda reply: RunProgress(reply[0] and reply[0].decode(), *reply[1:]))
