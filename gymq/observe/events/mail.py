"""Events of mail that is taken, refused, put aside, or deadly."""

from __future__ import annotations

from gymq.observe.events.event import Event


class MailTaken(Event, frozen=True, gc=False):
    """A batch of mail was taken.

    Args:
        role: of the worker.
        messages: how many.
        redelivered: those of them that were handed back before.
    """

    role: str
    messages: int
    redelivered: int


class MailRefused(Event, frozen=True, gc=False):
    """Mail was acknowledged unread: no worker of gymq can have written it.

    Args:
        role: of the worker.
        mail: its id and stream: `ID in STREAM`.
        reason: one line, which goes on after the mail: `is no call: ...`.
    """

    role: str
    mail: str
    reason: str


class MailParked(Event, frozen=True, gc=False):
    """Mail of a newer schema was put aside for newer workers; told once in a process.

    Args:
        role: of the worker.
        schema: the newest schema among it.
        readable: the newest schema that this worker reads.
    """

    role: str
    schema: int
    readable: int


class QuarantineStarted(Event, frozen=True, gc=False):
    """A child was started that runs suspects one at a time.

    Args:
        role: whose suspects.
    """

    role: str


class QuarantineEnded(Event, frozen=True, gc=False):
    """A quarantine has ended.

    Args:
        role: whose suspects.
        how: its exit code or signal, in words.
        seconds: how long it lived.
    """

    role: str
    how: str
    seconds: float


class DeadLettered(Event, frozen=True, gc=False):
    """Mail became a dead letter.

    Args:
        id: the letter's, for `gymq dead show`.
        role: whose processes died.
        rollout: the rollout's id.
        kind: the call's kind; `act`: a step of an agent.
        name: the tool, the environment of a hook, the model's SPEC or the agent.
        deaths: how many workers died with it in hand.
    """

    id: str
    role: str
    rollout: str
    kind: str
    name: str
    deaths: int
