"""Every error that gymq raises or records, in one place.

Two families. `GymqError` is raised to a person: its text is one line that says what, where and what to do.
`Fault` is recorded in a rollout: it says why a call or a rollout did not end well, and who is to blame.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FaultKind = Literal[
    "agent",  # the agent's code raised
    "environment",  # an environment's open, tool, respond or close raised
    "verifier",  # verify raised, or gave something that is no reward
    "model",  # the model endpoint refused, or answered nonsense
    "model_unavailable",  # the endpoint could not be reached, or its retry budget is spent
    "context_overflow",  # the prompt does not fit the model: a clean truncation, not a failure
    "replay_miss",  # a recorded model has no answer to this exact prompt
    "timeout",  # a call took longer than it may
    "killed",  # an isolated call's process died: exit, signal
    "memory",  # an isolated call asked for more memory than it may have
    "poison",  # a call killed its process again and again, though it ran alone; it is a dead letter now
    "task",  # the task's data cannot be rolled out
    "internal",  # a defect of gymq itself: please report it
    "cancelled",  # somebody cancelled it
]

#: Faults after which the conversation so far is kept, scored and reported as `truncated`.
TRUNCATING: frozenset[str] = frozenset({"context_overflow"})


#: What msgspec raises for bytes that are not what they must be: of a wrong shape, no UTF-8, or nested too deeply.
UNREADABLE: tuple[type[Exception], ...] = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """Why a call or a rollout did not end well.

    Args:
        kind: one of `FaultKind`.
        message: one line for a person; holds no secrets.
    """

    kind: str
    message: str


class GymqError(Exception):
    """Base of all errors that a user can meet; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(GymqError):
    """The command or call is wrong as written."""

    exit_code = 2


class DataError(GymqError):
    """A row or a file of tasks is bad."""

    exit_code = 3


class UnknownName(UsageError):
    """No environment, agent, backend or run of that name."""


class ServerUnreachable(GymqError):
    """Redis cannot be reached."""

    exit_code = 4


class RunClosed(GymqError):
    """The run takes no more rows: it was closed, cancelled or removed."""


class SinkBusy(GymqError):
    """Another process already writes this file."""

    exit_code = 5


class CallError(GymqError):
    """A call ended with a fault; workers turn it into the reply.

    Args:
        kind: one of `FaultKind`.
        message: one line.
    """

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(kind, message)


class ToolError(GymqError):
    """Raised by a tool to tell the model that its call failed; the text goes back to the model."""


class TaskError(GymqError):
    """Raised by an environment's hook to say that this task's data cannot be rolled out."""
