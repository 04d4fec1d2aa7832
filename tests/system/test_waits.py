"""Real workers tell what a run waits for, before its first rollout has ended."""

from __future__ import annotations

import pytest

from gymq.ops.mailboxes import Mailbox
from gymq.ops.status import overview
from gymq.store.runs import RunConfig
from tests.support.farm import guest_rows
from tests.support.rollouts import with_shards
from tests.support.waiting import wait_until


def waits(farm, name: str) -> str:
    """Return the wait of a run in words, as `gymq status` has them."""
    return with_shards(farm.settings, overview).waits[name].words


def executor_row(farm) -> Mailbox:
    """The row of the executors."""
    return next(box for box in with_shards(farm.settings, overview).mailboxes if box.name == "executor")


@pytest.mark.slow
def test_a_run_says_what_it_waits_for_before_its_first_rollout_has_ended(farm, tmp_path):
    # Given a run without workers
    farm.produce(RunConfig("held", "guest", "tool", "scripted"), guest_rows(tmp_path / "journal", 4, "rest"))
    needs = ("agent", "model --model scripted", "resource --environments guest", "executor")
    remedies = ", ".join(f"`gymq worker {need}`" for need in needs)
    assert waits(farm, "held") == f"a worker of agent, model:scripted, resource:guest, executor: start {remedies}"
    # When there are workers, and no executor
    farm.start_roles("guest")
    # Then its isolated calls wait for one, in a row of their own
    wait_until(lambda: executor_row(farm) == Mailbox("executor", 4, 0, 0), 20)
    assert waits(farm, "held") == "a worker of executor: start `gymq worker executor`"
    # And when there is a small one, it is full, and the time goes to the tool that it runs
    farm.start("executor", processes=1)
    full = "executors: 1 isolated calls run, 3 wait; start more: `gymq worker executor`"
    wait_until(lambda: waits(farm, "held") == full, 20, "the executor's row")
    seconds = with_shards(farm.settings, overview).seconds
    assert max(seconds, key=seconds.__getitem__) == "tool"
    farm.cancel("held")
