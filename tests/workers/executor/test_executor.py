"""Isolated calls on real processes: each form of death ends as that call's fault, soon, and disturbs no other call."""

from __future__ import annotations

import json
import time

import msgspec
import psutil
import pytest

from gymq.call import Scored, ToolResult
from gymq_workers.executor.parent import STARTED
from tests.support.redis_server import wait_until

#: Seconds that a fault may take beyond the call's own limit.
MARGIN = 2.0


def value(reply, kind=ToolResult):
    assert reply.fault is None, reply.fault
    return msgspec.msgpack.decode(reply.value, type=kind)


def content(reply):
    return json.loads(value(reply).content)


def marked(marker: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]


def test_a_call_runs_in_a_child_that_leads_its_own_group(executor):
    # When a tool is called that changes the state
    state = msgspec.msgpack.encode({"value": 4})
    reply, _ = executor.reply(executor.send("add", '{"n": 3}', state=state))

    # Then its result and the new state come back, from a process that is not the parent
    result = json.loads(content(reply))
    assert result["value"] == 7
    assert msgspec.msgpack.decode(value(reply).state) == {"value": 7}
    assert result["pid"] == result["pgid"] != executor.process.pid
    assert reply.worker.startswith("executor-")
    # And nothing says any longer that it was started
    wait_until(lambda: executor.redis.hlen(STARTED) == 0)


def test_a_verifier_is_scored_in_a_child(executor):
    reply, _ = executor.reply(executor.send("", kind="verify", state=msgspec.msgpack.encode({"value": 2})))
    assert value(reply, Scored).reward == 2.0


@pytest.mark.parametrize(
    ("tool", "arguments", "timeout", "kind", "says"),
    [
        ("spin", "{}", 1.0, "timeout", "longer than 1 s"),
        ("stubborn", "{}", 1.0, "timeout", "longer than 1 s"),
        ("leave", '{"code": 1}', 30.0, "killed", "exitcode 1"),
        ("leave", '{"code": 0}', 30.0, "killed", "exitcode 0"),
        ("kill_self", '{"number": 9}', 30.0, "killed", "SIGKILL"),
        ("kill_self", '{"number": 11}', 30.0, "killed", "SIGSEGV"),
        ("kill_self", '{"number": 15}', 30.0, "killed", "process"),
        ("politely_leave", "{}", 30.0, "environment", "SystemExit: 3"),
        ("hog", '{"mib": 4096}', 30.0, "memory", "MemoryError"),
        ("fail", "{}", 30.0, "environment", "ValueError: no such thing (isolated_world.py:"),
    ],
)
def test_a_death_ends_as_that_calls_fault_and_disturbs_no_other(executor, tool, arguments, timeout, kind, says):
    # Given a call that runs beside it
    neighbour = executor.send("nap", '{"seconds": 2.5}')

    # When a call goes wrong
    reply, seconds = executor.reply(executor.send(tool, arguments, timeout=timeout))

    # Then it ends as its fault, in time
    assert reply.fault is not None
    print(f"SEEN {tool} {arguments}: {reply.fault.kind}: {reply.fault.message} after {seconds:.2f} s")
    assert (reply.fault.kind, says in reply.fault.message) == (kind, True), reply.fault
    assert seconds < (timeout if kind == "timeout" else 0) + MARGIN
    # And the neighbour ends well, and the next two calls too
    assert content(executor.reply(neighbour)[0]).startswith("slept")
    for _ in range(2):
        assert content(executor.reply(executor.send("nap", '{"seconds": 0}'))[0]).startswith("slept")
    # And each call was answered once, and nothing of it is left
    assert all(len(found) == 1 for found in executor.replies.values())
    wait_until(lambda: executor.redis.hlen(STARTED) == 0)
    assert executor.redis.llen("gymq.isolated") == executor.redis.hlen("unacked") == 0


@pytest.mark.parametrize("how", ["group", "session"])
@pytest.mark.parametrize(("then", "kind"), [("hang", "timeout"), ("die", "killed"), ("return", None)])
def test_processes_that_a_call_leaves_behind_are_killed(executor, how, then, kind):
    # When a tool starts processes that ignore SIGTERM, in its group or in sessions of their own, and ends one way or another
    marker = f"gymq-test-{how}-{then}"
    call = executor.send("breed", json.dumps({"marker": marker, "how": how, "then": then}), timeout=1.5)
    deadline = time.monotonic() + 5
    while not marked(marker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert marked(marker)
    reply, seconds = executor.reply(call)

    # Then the call ends as usual and none of them is left
    print(f"SEEN breed {how} {then}: {reply.fault} after {seconds:.2f} s")
    assert (reply.fault and reply.fault.kind) == kind
    assert seconds < 1.5 + MARGIN
    deadline = time.monotonic() + 2
    while marked(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not marked(marker)
    # And the executor still has its children
    assert content(executor.reply(executor.send("nap", '{"seconds": 0}'))[0]).startswith("slept")
