"""Scripts of a run's ledger and life."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, IntEnum
from hashlib import blake2b
from typing import Any, NamedTuple, Self

import msgspec

from gymq.store.scripts.script import ScriptCall
from gymq.wire.ids import PartId


class EnqueueRefusal(Enum):
    """The reason for which a chunk was not written."""

    #: The run was closed or cancelled, is done, or does not exist.
    CLOSED = -1
    #: The ledger is full.
    FULL = -2
    #: The ledger has the chunk with other content.
    OTHER = -3


#: Bytes of a content's digest: two contents with the same one are less likely than a broken disk.
_DIGEST_SIZE = 16


class ChunkContent(NamedTuple):
    """The content of a chunk, or of one shard's part of it; as text `rows:digest`.

    Args:
        rows: how many rows it has.
        digest: of the encoded rows, in their order.
    """

    rows: int
    digest: str

    @classmethod
    def of(cls, tasks: Sequence[bytes]) -> Self:
        """Return the content of encoded rows."""
        digest = blake2b(digest_size=_DIGEST_SIZE)
        for task in tasks:
            digest.update(b"%d:" % len(task))
            digest.update(task)
        return cls(len(tasks), digest.hexdigest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split the text."""
        rows, _, digest = text.partition(":")
        return cls(int(rows), digest)

    def __str__(self) -> str:
        return f"{self.rows}:{self.digest}"


def enqueue(run: str, chunk: str, max_bytes: int, tasks: Sequence[bytes]) -> ScriptCall[int | EnqueueRefusal]:
    """Write a chunk of rows into a run's ledger, once; the reply is how many rows were written, 0 if it has the chunk.

    Args:
        run: the run's name.
        chunk: the chunk's id.
        max_bytes: bytes of unfinished rows that the ledger may hold.
        tasks: encoded tasks.
    """
    content = str(ChunkContent.of(tasks))
    return ScriptCall(
        "enqueue", (run, chunk, max_bytes, content, *tasks), lambda rows: EnqueueRefusal(rows) if rows < 0 else int(rows)
    )


class Admitted(msgspec.Struct):
    """The outcome of one admission.

    Args:
        admitted: rollouts that were started.
        skipped: rollouts that need not be done again.
    """

    admitted: int
    skipped: int


def create_run(
    run: str, incarnation: str, config: bytes, created: float, fields: Sequence[str | int]
) -> ScriptCall[bool | bytes | None]:
    """Create a run; the reply is True, or False if this incarnation was there, or what another one's definition is, or None.

    Args:
        run: the run's name.
        incarnation: its incarnation.
        config: its definition, JSON; empty: it is not created, only brought up to date if it is there.
        created: seconds since the epoch.
        fields: names and values of fields that may change, in turn.
    """
    return ScriptCall("create_run", (run, incarnation, config, repr(created), *fields), _created)


def _created(reply: list[Any]) -> bool | bytes | None:
    if reply[0] >= 0:
        return bool(reply[0])
    return reply[1] if len(reply) > 1 else None


def admit(limit: int, inline: int, skips: int, backlog_bytes: int, due: int) -> ScriptCall[Admitted]:
    """Start rollouts while their runs have credits.

    Args:
        limit: most rollouts that are started.
        inline: bytes up to which a task travels inside the mail.
        skips: most rollouts that are skipped.
        backlog_bytes: bytes of a run's finished rollouts beyond which it waits for its consumers.
        due: ms after which a rollout is looked at that has not begun.
    """
    return ScriptCall("admit", (limit, inline, skips, backlog_bytes, due), lambda reply: Admitted(*reply))


def cancel_run(run: str) -> ScriptCall[int | None]:
    """Cancel a run; the reply is how many rollouts were in flight, None if the run is done."""
    return ScriptCall("cancel_run", (run,), lambda live: None if live < 0 else int(live))


class CancelTarget(msgspec.Struct):
    """Rollouts of a group, or the one rollout, that are to be cancelled.

    Args:
        live: rollouts in flight.
        waiting: rollouts that have not begun.
        total: rollouts that there are, ended ones too; 0: the run has no such group or rollout.
    """

    live: int
    waiting: int
    total: int


class CancelledRollouts(msgspec.Struct):
    """The outcome of a cancellation of groups and rollouts.

    Args:
        state: the run's state; None: there is no such run.
        targets: counts of each; empty if the run does not go on. None is cancelled unless each has rollouts left.
    """

    state: str | None
    targets: list[CancelTarget]


def cancel_rollouts(run: str, targets: Sequence[PartId]) -> ScriptCall[CancelledRollouts]:
    """Cancel groups and rollouts of a run that goes on.

    Args:
        run: the run's name.
        targets: the groups and rollouts.
    """
    return ScriptCall(
        "cancel_rollouts",
        (run, *map(str, targets)),
        lambda reply: CancelledRollouts(reply[0] and reply[0].decode(), [CancelTarget(*counts) for counts in reply[1:]]),
    )


class CloseOutcome(IntEnum):
    """The outcome of closing a run."""

    #: The run was cancelled, or does not exist.
    REFUSED = -1
    #: The run was closed or done before.
    UNCHANGED = 0
    CLOSED = 1


def close_run(run: str) -> ScriptCall[CloseOutcome]:
    """Say that a run gets no more rows."""
    return ScriptCall("close_run", (run,), CloseOutcome)


def reopen_run(run: str, created: float | None = None) -> ScriptCall[bool]:
    """Let a closed run take rows again; False: it is cancelled or done, or does not exist.

    Args:
        run: the run's name.
        created: seconds since the epoch at which it was created, if it goes on elsewhere: then it may be done on this shard.
    """
    return ScriptCall("reopen_run", (run,) if created is None else (run, str(created)), bool)


def remove_run(run: str) -> ScriptCall[None]:
    """Forget a run and all that it holds."""
    return ScriptCall("remove_run", (run,), lambda reply: None)
