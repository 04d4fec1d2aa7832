"""Scripts that read and advance rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from gymq.store.scripts.script import ScriptCall, pack


class CommitOutcome(IntEnum):
    """The outcome of one step."""

    #: Its rollout has ended or gone on: the mail is acknowledged, nothing else happens.
    STALE = 0
    APPLIED = 1
    #: The rollout is at another version, or at one at which its mail is of use after all: nothing happens, decide again.
    CONFLICT = 2


class Send(msgspec.Struct):
    """An encoded call that a step sends.

    Args:
        mailbox: mailbox that the call is meant for.
        body: the encoded call.
        workers: workers whose private mailboxes are preferred, the first one most; None: none.
        margin: messages that the first worker may be behind the others' shortest mailbox, beyond a quarter of that.
    """

    mailbox: str
    body: bytes
    workers: list[str] | None = None
    margin: int | None = None


class RolloutEnd(msgspec.Struct):
    """The end of a rollout.

    Args:
        run: the run's name.
        row: the row's number.
        samples: rollouts of the row's group.
        status: how the rollout ended.
        header: the record as a JSON object without its closing brace; the script appends messages and calls.
        counters: names of the run's counters, each followed by what is added to it; None: none.
    """

    run: str
    row: int
    samples: int
    status: str
    header: bytes
    counters: list[str | int] | None = None


class BuriedLetter(msgspec.Struct):
    """A dead letter that a step writes.

    Args:
        letter: the encoded letter.
        ttl: seconds for which dead letters are kept from now on.
    """

    letter: bytes
    ttl: int


class CommitStep(msgspec.Struct):
    """One step of a rollout, applied as a whole or not at all.

    Args:
        rollout: the rollout's id.
        version: version that the step was decided on; -1 only acknowledges the mail.
        stream, mail: stream and id of the mail to acknowledge; empty: none.
        fields: names and values of the rollout's hash fields, in turn; None: no step, the mail was found to be of no use.
        messages: encoded messages to append.
        records: encoded call records to append.
        sends: calls to send.
        due: ms until the rollout is looked at if nothing has happened until then; without a step: 0, or ms until it is due
            again.
        final: the rollout's end; None: it goes on.
        must: True for a cancellation: another version is a conflict, even a newer one.
        letter: the mail's dead letter.
        drop: True gives up the calls that are pending.
        token: idempotency token that the replies to `sends` must bear; None: none.
    """

    rollout: str | bytes
    version: int
    stream: str | bytes = b""
    mail: str | bytes = b""
    fields: Sequence[str | bytes] | None = ()
    messages: Sequence[bytes] = ()
    records: Sequence[bytes] = ()
    sends: Sequence[Send] = ()
    due: int = 0
    final: RolloutEnd | None = None
    must: bool = False
    letter: BuriedLetter | None = None
    drop: bool = False
    token: str | None = None

    @property
    def weight(self) -> int:
        """About how many bytes it is when it is sent."""
        weight = 0 if self.final is None else len(self.final.header)
        for part in (self.fields, self.messages, self.records):
            if part:
                weight += sum(map(len, part))
        for send in self.sends:
            weight += len(send.body)
        return weight


_OUTCOMES = tuple(CommitOutcome)


def commit(steps: Sequence[CommitStep], field: str = "c") -> ScriptCall[list[CommitOutcome]]:
    """Commit steps of rollouts, each as a whole or not at all.

    Args:
        steps: at most one step of a rollout.
        field: name of the mail's field that holds a call; it tells the call's schema.
    """
    return ScriptCall("commit", (pack(steps), field), lambda reply: [_OUTCOMES[outcome] for outcome in reply])


class LoadRequest(msgspec.Struct):
    """The parts of one rollout that an actor lacks.

    Args:
        rollout: the rollout's id.
        first: index of the first message that is wanted; -1: no messages.
        run: the run's name.
        row: number of the row whose task is wanted; -1: no task.
        records: True: the call records are wanted.
    """

    rollout: str
    first: int
    run: str
    row: int
    records: bool | None = None


class LoadedRollout(msgspec.Struct):
    """The stored parts of one rollout, encoded; None: missing, or not asked for.

    Args:
        version: the rollout's version, as decimal digits.
        state: the agent's state.
        environment_state: the environment's state.
        parameters: parameters of requests to the model.
        messages: messages from the first one that was asked for.
        task: the task.
        records: call records, if asked for.
    """

    version: bytes | None
    state: bytes | None
    environment_state: bytes | None
    parameters: bytes | None
    messages: list[bytes]
    task: bytes | None
    records: list[bytes] = []


#: Bytes after which one script loads no further rollout: some ten milliseconds of the server's time.
LOAD_BYTES = 16 * 2**20


def load_rollouts(requests: Sequence[LoadRequest]) -> ScriptCall[list[LoadedRollout]]:
    """Read what an actor lacks of some rollouts; a large reply ends before the last of them, but not before the first."""
    return ScriptCall("load_rollouts", (pack(requests), LOAD_BYTES), lambda reply: [LoadedRollout(*fields) for fields in reply])


def wake(limit: int, again: int, now: int | None = None) -> ScriptCall[int]:
    """Send mail to rollouts that are due; the reply is how many got mail.

    Args:
        limit: most rollouts of one call.
        again: ms after which a rollout is due again if its mail comes to nothing.
        now: ms since the epoch; None: by the server's clock.
    """
    return ScriptCall("wake", ("" if now is None else now, limit, again), int)
