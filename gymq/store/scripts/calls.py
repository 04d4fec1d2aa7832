"""Scripts of calls: their replies, and who works on them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from gymq.store.scripts.script import ScriptCall, pack


class ReplyOutcome(IntEnum):
    """The outcome of one reply, or of the acknowledgement of a call's mail."""

    #: The call was answered before, or its rollout has ended or gone on; the mail is acknowledged.
    STALE = 0
    MERGED = 1
    #: The entry brings no reply, and the call is wanted after all, as Redis was rolled back: the mail stays.
    WANTED = 2


class ReplyEntry(msgspec.Struct):
    """The reply to one call, or the acknowledgement of its mail.

    Args:
        rollout, step, n: the call; an empty rollout: mail that is none.
        body: the encoded reply; None: none, as the call was found to be unwanted or answered.
        stream, mail: stream and id of the call's mail; empty: none, as an executor has no mail.
        token: the call's idempotency token.
        letter: the call's encoded dead letter.
        letter_ttl: seconds for which dead letters are kept from now on.
    """

    rollout: str
    step: int
    n: int
    body: bytes | None
    stream: str | bytes = b""
    mail: str | bytes = b""
    token: str = ""
    letter: bytes | None = None
    letter_ttl: int | None = None


_OUTCOMES = tuple(ReplyOutcome)


def reply(entries: Sequence[ReplyEntry]) -> ScriptCall[list[ReplyOutcome]]:
    """Merge replies into their rollouts, and acknowledge their calls' mail."""
    return ScriptCall("reply", (pack(entries),), lambda reply: [_OUTCOMES[outcome] for outcome in reply])


class CallKey(msgspec.Struct):
    """A pending call of a rollout.

    Args:
        rollout: the rollout's id.
        step: version of the rollout that waits for the call.
        n: the call's number within the step.
    """

    rollout: str
    step: int
    n: int


def pending_calls(calls: Sequence[CallKey]) -> ScriptCall[list[bool]]:
    """See which calls are still pending at the step at which their rollout is."""
    return ScriptCall("pending_calls", (pack(calls),), lambda reply: [pending == 1 for pending in reply])


class OnceOutcome(IntEnum):
    """The permission of a call that must not run twice."""

    #: The rollout has ended or gone on.
    NOT_PENDING = -1
    BEGUN_BY_OTHER = 0
    #: This worker has begun it, now or before.
    BEGUN = 1


def begin_once(rollout: str, step: int, n: int, worker: str) -> ScriptCall[OnceOutcome]:
    """Begin a call that must not run twice.

    Args:
        rollout, step, n: the call.
        worker: name of the worker that begins it.
    """
    return ScriptCall("begin_once", (rollout, f"{step}.{n}", worker), OnceOutcome)


def claim_call(rollout: str, step: int, n: int, token: str, executor: str, always: bool) -> ScriptCall[bool]:
    """Begin an isolated call; False: it is answered, or a living executor works on it.

    Args:
        rollout, step, n: the call.
        token: the call's idempotency token.
        executor: name of the executor that begins it.
        always: True: begin also if the call is not pending any more.
    """
    return ScriptCall("claim_call", (rollout, step, n, token, executor, int(always)), bool)


class IsolatedState(IntEnum):
    """The state of a call that was given to executors."""

    #: Answered, or not wanted any more.
    OVER = 0
    #: No executor has begun it.
    NOT_BEGUN = 1
    RUNNING = 2
    #: The executor that worked on it is dead.
    EXECUTOR_DEAD = 3
    #: Not wanted any more, and an executor works on it all the same or has just answered.
    GIVEN_UP = 4


def isolated_states(calls: Sequence[CallKey]) -> ScriptCall[list[IsolatedState]]:
    """See what became of calls that were given to executors."""
    return ScriptCall("isolated_states", (pack(calls),), lambda reply: [IsolatedState(state) for state in reply])
