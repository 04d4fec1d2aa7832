"""The trial: which failures stop a run, and which are single tasks' own."""

from __future__ import annotations

import pytest

from gymq.local.trial import Trial, Verdict
from gymq.store.run_status import RunStatus
from gymq.store.runs import RunConfig


def status(good: int = 0, **failures: int) -> RunStatus:
    by_status = {"completed": good, "failed": sum(failures.values())}
    ended = sum(by_status.values())
    return RunStatus(RunConfig("r", "e", "a", "m"), "open", 100, 50, ended, 8, by_status, {}, failures=failures)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (status(), Verdict.OPEN),
        (status(model_access=2), Verdict.OPEN),
        (status(model_access=3), Verdict.FAILED),
        (status(model_unavailable=3), Verdict.FAILED),
        (status(model_access=2, model_unavailable=1), Verdict.FAILED),
        (status(model_access=3, environment=1), Verdict.OPEN),
        (status(environment=7), Verdict.OPEN),
        (status(environment=8), Verdict.FAILED),
        (status(environment=5, task=3), Verdict.FAILED),
        (status(environment=4, task=4), Verdict.PASSED),
        (status(1, environment=7), Verdict.PASSED),
        (status(1, model_access=7), Verdict.PASSED),
    ],
)
def test_the_verdict_is_about_kinds_of_failure_while_nothing_has_succeeded(now: RunStatus, verdict: Verdict):
    assert Trial(status(), 8).judge(now) is verdict


def test_what_ended_before_the_command_counts_for_nothing():
    trial = Trial(status(90, model_access=20, environment=5), 8)
    assert trial.judge(status(90, model_access=20, environment=5)) is Verdict.OPEN
    assert trial.judge(status(90, model_access=23, environment=5)) is Verdict.FAILED
    assert (trial.failed, trial.kind) == (3, "model_access")


def test_a_run_that_has_succeeded_is_stopped_when_as_many_as_are_in_flight_lack_access_and_none_succeeds_between():
    trial = Trial(status(), 8)
    assert trial.judge(status(1)) is Verdict.PASSED
    assert trial.judge(status(1, environment=30)) is Verdict.PASSED
    assert trial.judge(status(2, environment=30, model_access=7)) is Verdict.PASSED
    assert trial.judge(status(2, environment=30, model_access=14)) is Verdict.PASSED
    assert trial.judge(status(2, environment=30, model_access=15)) is Verdict.FAILED


def test_with_one_rollout_at_a_time_a_wrong_key_costs_one_and_one_bad_task_stops_nothing():
    assert Trial(status(), 1).judge(status(model_access=1)) is Verdict.FAILED
    assert Trial(status(), 1).judge(status(environment=1)) is Verdict.OPEN
    assert Trial(status(), 1).judge(status(environment=2)) is Verdict.FAILED
