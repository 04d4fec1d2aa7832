"""Log lines of a tool that runs in a thread belong to the call that it was called for."""

from __future__ import annotations

import contextvars

from gymq_workers.resource.threads import ToolThreads

from gymq.observe.work import work_in_hand
from gymq.wire.calls import Call


def test_a_thread_has_the_call_in_hand_for_which_it_runs_and_no_other_afterwards():
    threads = ToolThreads()
    call = Call("r.0.0", 1, 0, "tool", "r", "dice", 0, 0.0, name="roll")

    def serve() -> object:
        work_in_hand.set(call)
        return threads.submit(work_in_hand.get).result(10)

    assert contextvars.copy_context().run(serve) is call
    assert [threads.submit(work_in_hand.get).result(10) for _ in range(3)] == [None] * 3
    threads.shutdown()
