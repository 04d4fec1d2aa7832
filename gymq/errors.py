"""Every error that gymq raises or records.

Two families: a `GymqError` is raised to a person, and its text is one line with subject, place and remedy; a `Fault` is
recorded in a rollout, and its kind names the cause of a call's or rollout's bad end.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FaultKind = Literal[
    "agent",  # the agent's code raised
    "environment",  # an environment's open, tool, respond or close raised
    "verifier",  # verify raised, or returned no valid reward
    "model",  # the model endpoint refused the request, or its answer cannot be read
    "model_access",  # the endpoint refuses the key, or does not know the path or the model: no request can succeed
    "model_unavailable",  # the endpoint could not be reached, or its retry budget is spent
    "context_overflow",  # the prompt does not fit the model: a clean truncation, not a failure
    "replay_miss",  # a recorded model has no answer to this exact prompt
    "unavailable",  # a service of an environment or a verifier does not answer
    "timeout",  # a call took longer than it may
    "killed",  # an isolated call's process died: exit, signal
    "interrupted",  # an isolated call's process was killed, and not by gymq: by the kernel for lack of memory, or by a person
    "memory",  # an isolated call exceeded its memory limit
    "poison",  # a call killed its process even in quarantine, and is a dead letter now
    "result_too_large",  # a tool's or hook's result exceeds the limit
    "task",  # the task's data cannot be rolled out
    "internal",  # a defect of gymq itself: please report it
    "cancelled",  # the run or rollout was cancelled
    "stale",  # its tokens are of too old a policy version
]

#: Faults after which the conversation so far is kept, scored and reported as `truncated`.
TRUNCATING: frozenset[str] = frozenset({"context_overflow"})

#: Faults of the services and machines around a rollout: they may pass, and a retry budget covers them. All other faults are the
#: request's own: a retry would most often end the same way.
INFRASTRUCTURE: frozenset[str] = frozenset({"model_unavailable", "unavailable", "interrupted"})

#: Faults of a run's model that say more of the command than of a task: with them, no rollout can succeed.
CONFIGURATION: frozenset[str] = frozenset({"model_access", "model_unavailable"})

#: Kinds of calls whose time-out is a service's; of other kinds it is the environment's own code that took too long.
SERVICES: frozenset[str] = frozenset({"generate", "ask"})

#: Errors of msgspec for bytes of a wrong shape, of invalid UTF-8, or nested too deeply.
UNREADABLE: tuple[type[Exception], ...] = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """The cause of a call's or rollout's bad end.

    Args:
        kind: one of `FaultKind`.
        message: one line for a person, without secrets.
    """

    kind: str
    message: str

    def passes(self, call: str) -> bool:
        """Return whether the fault may pass by itself.

        Args:
            call: the kind of the call that ended with it.
        """
        return self.kind in INFRASTRUCTURE or (self.kind == "timeout" and call in SERVICES)


class GymqError(Exception):
    """Base of the errors that a user can meet."""

    #: The exit code of a command that ends with the error.
    exit_code: int = 1


class UsageError(GymqError):
    """The command or call is wrong as written."""

    exit_code = 2


class DataError(GymqError):
    """A row or a file of tasks is bad."""

    exit_code = 3


class UnknownName(UsageError):
    """No environment, agent, backend or run has that name."""


class ServerUnreachable(GymqError):
    """Redis cannot be reached.

    Args:
        reason: why.
        remedy: what the person who started the process can do; "": nothing that the reason does not say.
    """

    exit_code = 4

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}; {remedy}" if remedy else reason)
        self.reason = reason


class RunClosed(GymqError):
    """The run was closed, cancelled or removed, and takes no more rows."""


class SinkBusy(GymqError):
    """Another process already writes this file."""

    exit_code = 5


class MemberReplaced(GymqError):
    """Another process has become the same member of a consumer."""

    exit_code = 5


class OtherFile(UsageError):
    """The consumer's file is another one: it holds what this one does not."""


class CallError(GymqError):
    """A call's end with a fault, which a worker turns into the reply.

    Args:
        kind: one of `FaultKind`.
        message: one line.
    """

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(kind, message)


class ToolError(GymqError):
    """Raised by a tool whose call fails; the model receives the text as the call's result.

    raise ToolError(f"There is no city {city!r}.")
    """


class Unavailable(GymqError):
    """Raised by a hook or tool when a service does not answer; the call is sent again later, on the retry budget."""


class TaskError(GymqError):
    """Raised by an environment's hook when the task's data cannot be rolled out; the rollout fails with kind `task`."""


#: Characters of quoted text in a fault.
MAX_QUOTE = 300


def one_line(text: str) -> str:
    """Return text as one bounded line that every terminal and every encoding can show.

    Args:
        text: any text; a server's may hold lone surrogates and control characters.
    """
    line = " ".join(text[: 20 * MAX_QUOTE].split())
    line = "".join(c if c.isprintable() else "?" for c in line[: MAX_QUOTE + 1])
    return line if len(line) <= MAX_QUOTE else line[:MAX_QUOTE] + "…"
