"""The trial of a run: its first rollouts show whether any can succeed, before the others are spent.

A wrong key, an address where nothing answers, an environment that is broken: each fails every rollout alike. A single bad
task fails alone. So a rollout that failed keeps its credit (`cap` in the run's record) until one has not failed: at most
`concurrency` rollouts can fail before the verdict, however fast they do. The verdict is one about kinds of failure.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum, auto

from gymq.errors import CONFIGURATION
from gymq.store.run_status import RunStatus

#: Failures that show a wrong key, model or address: it says of itself that it has nothing to do with the task, and two could
#: be rows that a provider's moderation refuses.
ENOUGH = 3

#: Statuses of rollouts that did not fail: the model and the environment did their part.
_GOOD = ("completed", "truncated")


class Verdict(Enum):
    """The outcome of a look at a run on trial."""

    OPEN = auto()
    PASSED = auto()
    FAILED = auto()


class Trial:
    """The trial of one command's rollouts.

    Args:
        before: the run's status when the command began.
        concurrency: rollouts in flight at once.

    Attributes:
        allowed: rollouts that may fail before the verdict: two at least, because one cannot fail like another.
        failed: rollouts of this command that have failed since the last that did not.
        kind: the fault that most of them have in common.
    """

    def __init__(self, before: RunStatus, concurrency: int) -> None:
        self._before = before
        self._concurrency = concurrency
        self._passed = False
        self.allowed = max(concurrency, 2)
        self.failed = 0
        self.kind = ""

    def judge(self, status: RunStatus) -> Verdict:
        """Return whether the run can succeed.

        Args:
            status: the run's status now.
        """
        if _good(status) > _good(self._before):
            # From here on the same question is: has anything succeeded since? A key may be withdrawn, an account be empty.
            self._before, self._passed = status, True
            return Verdict.PASSED
        failures = Counter(status.failures) - Counter(self._before.failures)
        self.failed = failures.total()
        self.kind = max(failures, key=failures.__getitem__, default="")
        enough = max(ENOUGH, self._concurrency) if self._passed else min(ENOUGH, self._concurrency)
        if self.failed >= enough and failures.keys() <= CONFIGURATION:
            return Verdict.FAILED
        if self._passed:
            return Verdict.PASSED
        if self.failed < self.allowed:
            return Verdict.OPEN
        return Verdict.FAILED if failures[self.kind] * 2 > self.failed else Verdict.PASSED


def _good(status: RunStatus) -> int:
    return sum(status.by_status.get(name, 0) for name in _GOOD)
