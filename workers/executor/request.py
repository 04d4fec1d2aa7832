"""The request of an isolated call in Celery's parent process, which replies in the place of a child that cannot."""

from __future__ import annotations

import base64
import logging
import time

import msgspec
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from gymq.celery.queues import EXECUTOR, ISOLATED_QUEUE
from gymq.errors import Fault
from gymq.observe.events import CallFinished, emit, wanted
from gymq.wire.calls import Call, Reply, decode_call, decode_reply

from . import processes
from .parent import Undelivered, current

log = logging.getLogger(__name__)

#: The words of WorkerLostError before and after a death's cause.
_BEFORE, _AFTER = "Worker exited prematurely: ", " Job: "


def read_call(body: object) -> Call | None:
    """Decode a call from a task's argument; None, with a log line, if it is no call."""
    try:
        return decode_call(base64.b64decode(body))  # type: ignore[arg-type]
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        log.warning("a message to %s is no call: %s", ISOLATED_QUEUE, error)
        return None


class IsolatedRequest(Request):
    """A request of `gymq.isolated`. Its methods run on the parent's main thread."""

    _answered = False

    def send_event(self, type: str, **fields: object) -> None:
        """Send an event of Celery's; of a child that has ended tell what it did, too.

        Args:
            type: the event's.
            fields: the event's.
        """
        # Celery replaces `on_success` in a class of its own below this one.
        if type == "task-succeeded":
            self._tell(str(fields["result"]).strip("'"), float(str(fields["runtime"])))
        super().send_event(type, **fields)

    def _tell(self, outcome: str, runtime: float) -> None:
        """Emit what a child has done.

        Args:
            outcome: the result of `gymq.isolated`, of which the text of its `repr` comes here.
            runtime: seconds that it took.
        """
        if outcome == "None" or not wanted(CallFinished) or (call := read_call(self.args[0])) is None:
            return
        now = time.time()
        reply = Reply(call.n, now - runtime, now, current().name)
        emit(msgspec.structs.replace(CallFinished.of(EXECUTOR, call, reply, True), outcome=outcome))

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Reply for a child that died, was killed at its limit, or could not deliver its reply.

        Args:
            exc_info: the failure.
            send_failed_event: as of the base.
            return_ok: as of the base.
        """
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        self._answer(error)
        if isinstance(error, TimeLimitExceeded):
            # billiard calls `on_timeout` next, which does the rest; here it would send all events twice.
            return
        if isinstance(error, MemoryError):
            # Celery would raise it again in the parent.
            state.task_ready(self)
            self.acknowledge()
            self.send_event("task-failed", exception=repr(error), traceback="")
            return
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: object, expired: bool) -> None:
        self._reply_fault(Fault("killed", f"the isolated call was {reason} by remote control"), kill=True)
        super()._announce_revoked(reason, terminated, signum, expired)

    def _answer(self, error: BaseException) -> None:
        # A cold shutdown kills innocent children: their calls are sent again once this executor's liveness has lapsed.
        if isinstance(error, Undelivered) and (call := read_call(self.args[0])) is not None:
            self._answered = True
            current().answer(call, decode_reply(error.args[0]))
        elif not state.should_terminate:
            self._reply_fault(self._fault(error), kill=isinstance(error, (TimeLimitExceeded, WorkerLostError)))

    def _fault(self, error: BaseException) -> Fault:
        if isinstance(error, TimeLimitExceeded):
            limit = self.time_limits[0] or self.task.time_limit
            return Fault("timeout", f"took longer than {limit:g} s and was killed")
        if isinstance(error, WorkerLostError):
            text = str(error).partition(_BEFORE)[2].partition(_AFTER)[0] or str(error)
            if "SIGKILL" in text:
                # Nothing of gymq's own kills ends here: that at a time limit has its own error, and others have no answer.
                why = "by the system for lack of memory" if self._was_memory() else "by the system or a person (SIGKILL)"
                return Fault("interrupted", f"its process was killed {why}")
            return Fault("killed", f"its process died: {text.rstrip('.')}")
        return Fault("killed", f"its process failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}")

    def _was_memory(self) -> bool:
        kills, before = processes.memory_kills(), current().memory_kills
        current().memory_kills = kills
        return kills is not None and before is not None and kills > before

    def _reply_fault(self, fault: Fault, *, kill: bool) -> None:
        if self._answered:
            return
        self._answered = True
        # The kill comes first: a call that runs on after its fault was recorded could do harm beside its successor.
        if kill:
            current().kill_remains(self.worker_pid)
        call = read_call(self.args[0] if self.args else None)
        if call is None:
            return
        now = time.time()
        reply = Reply(n=call.n, started=self.time_start or now, finished=now, worker=current().name, fault=fault)
        current().answer(call, reply)
