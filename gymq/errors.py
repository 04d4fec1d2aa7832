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
    "unavailable",  # a service that an environment or a verifier needs does not answer
    "timeout",  # a call took longer than it may
    "killed",  # an isolated call's process died: exit, signal
    "memory",  # an isolated call asked for more memory than it may have
    "poison",  # a call killed its process again and again, though it ran alone; it is a dead letter now
    "result_too_large",  # a tool or hook gave more than a result may have
    "task",  # the task's data cannot be rolled out
    "internal",  # a defect of gymq itself: please report it
    "cancelled",  # somebody cancelled it
    "stale",  # its tokens are of a policy version that is too old to be used
]

#: Faults after which the conversation so far is kept, scored and reported as `truncated`.
TRUNCATING: frozenset[str] = frozenset({"context_overflow"})

#: Faults of what stands around a rollout: they may pass, and its calls are sent again on the budget for them. All others
#: are the data's: what was asked is at fault, and asking again would most often do the same.
INFRASTRUCTURE: frozenset[str] = frozenset({"model_unavailable", "unavailable"})

#: Calls whose time-out is a service's. Elsewhere it is the environment's own code that took too long.
SERVICES: frozenset[str] = frozenset({"generate", "ask"})


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

    def passes(self, call: str) -> bool:
        """Whether it may pass by itself.

        Args:
            call: the kind of the call that ended with it.
        """
        return self.kind in INFRASTRUCTURE or (self.kind == "timeout" and call in SERVICES)


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


class Unavailable(GymqError):
    """Raised by a hook or tool to say that a service does not answer: the call is sent again later."""


class TaskError(GymqError):
    """Raised by an environment's hook to say that this task's data cannot be rolled out."""


#: Characters of a text of others that a fault repeats.
MAX_QUOTE = 300


def one_line(text: str) -> str:
    """Text of others for a fault: one line that every terminal and every encoding bears, and not too long.

    Args:
        text: any text; what a server sent may hold lone surrogates and control characters.
    """
    line = " ".join(text[: 20 * MAX_QUOTE].split())
    line = "".join(c if c.isprintable() else "?" for c in line[: MAX_QUOTE + 1])
    return line if len(line) <= MAX_QUOTE else line[:MAX_QUOTE] + "…"
