"""The guard of a run: stops it where no rollout can succeed or its budget is spent, and bounds its admission until then."""

from __future__ import annotations

import time
from contextlib import suppress

import msgspec

from gymq.local.run_budget import RunBudget
from gymq.local.run_options import RunOptions
from gymq.local.trial import Trial, Verdict
from gymq.store.connection import Outage
from gymq.store.run_status import RunStatus
from gymq.store.sharded import Shards

#: Exit codes of a run that was stopped: because its rollouts fail alike; at --max-cost or --max-time.
HOPELESS, LIMITED = 7, 9


class Stop(msgspec.Struct, frozen=True):
    """The reason for which a run was stopped before its end.

    Args:
        code: the exit code.
        line: what to tell a person.
    """

    code: int
    line: str


#: What becomes of the calls of a run that is stopped in order.
_IN_ORDER = "calls in flight may end (again to stop at once)"


def stopped_by(number: int) -> Stop:
    """Return the stop by a signal.

    Args:
        number: the signal's number.
    """
    return Stop(128 + number, f"stopping: {_IN_ORDER}")


class RunGuard:
    """The guard of one `gymq run`.

    Args:
        options: the run's options, with its limits.
        before: the run's status when the command began.
    """

    def __init__(self, options: RunOptions, before: RunStatus) -> None:
        self._run = before.config.name
        self._before = before
        self._trial = Trial(before, options.concurrency)
        self._budget = RunBudget(options, before)
        self._began = time.monotonic()

    async def enter(self, shards: Shards) -> None:
        """Bound what may fail, or be spent, before the first verdict; called before a rollout begins."""
        await shards.bound(self._run, self._trial.allowed, self._budget.room(self._before))

    async def judge(self, shards: Shards, status: RunStatus) -> Stop | None:
        """Return why the run is to be stopped now, if it is, and admit no more then; else bound it by its budget, if at all.

        Args:
            shards: connections.
            status: the run's status now.
        """
        verdict, over = self._trial.judge(status), self._budget.over(status, time.monotonic() - self._began)
        room = self._budget.room(status)
        reason, code, rest = "", 0, ""
        if verdict is Verdict.FAILED:
            reason = f"{self._trial.failed} rollouts failed alike ({self._trial.kind}), and none has succeeded"
            code = HOPELESS
        elif over and not _complete(status):
            reason, code, rest = over, LIMITED, f"; {_IN_ORDER}"
        with suppress(Outage):
            if code:
                await shards.stop(self._run, reason)
            elif verdict is Verdict.PASSED and (room is not None or status.bounded):
                await shards.bound(self._run, rollouts=room)
        return Stop(code, f"stopping: {reason}{rest}") if code else None


def _complete(status: RunStatus) -> bool:
    """Return whether all rollouts of a run have ended, so that only its sink has something to do."""
    return status.state != "open" and status.ended >= status.total
