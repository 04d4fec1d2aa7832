"""Isolated calls on real processes: each form of death ends as that call's fault, soon, and disturbs no other call."""

from __future__ import annotations

import json
import threading
import time

import msgspec
import psutil
import pytest
from gymq_workers.executor import processes

from gymq.wire.calls import Scored, ToolResult
from tests.support.shard import keys
from tests.support.tiers import heavy, slow
from tests.support.waiting import wait_until

#: Seconds that a fault may take beyond the call's own limit.
MARGIN = 6.0


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
    wait_until(lambda: executor.redis.hlen(keys.isolated) == 0)


def test_a_verifier_is_scored_in_a_child(executor):
    reply, _ = executor.reply(executor.send("", kind="verify", state=msgspec.msgpack.encode({"value": 2})))
    assert value(reply, Scored).reward == 2.0


@pytest.mark.parametrize(
    ("tool", "arguments", "timeout", "kind", "says"),
    [
        ("spin", "{}", 1.0, "timeout", "longer than 1 s"),
        ("kill_self", '{"number": 9}', 30.0, "interrupted", "SIGKILL"),
        ("hog", '{"mib": 4096}', 30.0, "memory", "MemoryError"),
        *slow(
            ("stubborn", "{}", 1.0, "timeout", "longer than 1 s"),
            ("leave", '{"code": 1}', 30.0, "killed", "exitcode 1"),
            ("kill_self", '{"number": 11}', 30.0, "killed", "SIGSEGV"),
            ("hold_the_gil", "{}", 1.0, "timeout", "longer than 1 s"),
            ("allocate", "{}", 30.0, "memory", "MemoryError"),
            ("give", '{"mib": 100, "form": "list"}', 30.0, "result_too_large", "16 MiB"),
            ("write", '{"mib": 5000}', 30.0, "environment", "File too large"),
            ("overflow", "{}", 30.0, "killed", "SIGSEGV"),
            ("fail", "{}", 30.0, "environment", "ValueError: no such thing (isolated_world.py:"),
        ),
        *heavy(
            ("leave", '{"code": 0}', 30.0, "killed", "exitcode 0"),
            ("kill_self", '{"number": 15}', 30.0, "killed", "process"),
            ("politely_leave", "{}", 30.0, "environment", "SystemExit: 3"),
            ("block", "{}", 1.0, "timeout", "longer than 1 s"),
            ("backtrack", "{}", 1.0, "timeout", "longer than 1 s"),
            ("give", '{"mib": 1024, "form": "text"}', 60.0, "result_too_large", "16 MiB"),
            ("close_all", "{}", 30.0, "environment", "Bad file descriptor"),
        ),
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
    # And the neighbour ends well, and the next two calls too
    assert content(executor.reply(neighbour)[0]).startswith("slept")
    for _ in range(2):
        assert content(executor.reply(executor.send("nap", '{"seconds": 0}'))[0]).startswith("slept")
    # And each call was answered once (twice where the child answered and then could not tell its parent; the first counts)
    assert all(len(found) == 1 or tool == "close_all" for found in executor.replies.values())
    wait_until(lambda: executor.redis.hlen(keys.isolated) == 0)
    assert executor.redis.llen("gymq.isolated") == executor.redis.hlen("unacked") == 0


@pytest.mark.slow
@pytest.mark.parametrize("descriptor", [1, *heavy(2)])
def test_what_calls_print_does_not_flood_the_log(executor, descriptor):
    # When a call prints a gigabyte
    reply, _ = executor.reply(executor.send("shout", f'{{"mib": 1024, "descriptor": {descriptor}}}'), within=240)

    # Then it ends well, and the log has a little of it and one line that says how much was cut
    assert content(reply) == "said"
    wait_until(lambda: "bytes were cut" in executor.log.read_text(), 20)
    assert executor.log.stat().st_size < 4 << 20
    (line,) = [line for line in executor.log.read_text().splitlines() if "bytes were cut" in line]
    assert "isolated calls printed too much" in line


@pytest.mark.slow
def test_a_fork_bomb_in_sessions_of_its_own_ends_with_its_call(executor):
    marker = f"gymq-test-{time.time_ns()}"
    reply, _ = executor.reply(executor.send("fork_bomb", json.dumps({"marker": marker}), timeout=2))
    assert reply.fault.kind == "timeout"
    wait_until(lambda: not marked(marker), 10, "the end of the bomb")
    assert content(executor.reply(executor.send("nap", '{"seconds": 0}'))[0]).startswith("slept")


def test_a_call_leaves_no_temporary_file(executor, tmp_path):
    # Given calls that leave a file, delete the folder, and die with a file
    path = content(executor.reply(executor.send("write", '{"mib": 1}'))[0])
    assert path.startswith(str(tmp_path))
    assert content(executor.reply(executor.send("delete_temporary"))[0]) == "deleted"
    assert content(executor.reply(executor.send("write", '{"mib": 1}'))[0])
    # Then there are folders and no files
    (folder,) = tmp_path.glob("gymq-executor-*")
    wait_until(lambda: not [path for path in folder.rglob("*") if path.is_file()], 5, "the end of the files")
    # And at the executor's end nothing
    executor.process.terminate()
    assert executor.process.wait(15) == 0
    wait_until(lambda: not folder.exists(), 5, "the end of the folder")


@pytest.mark.slow
def test_many_calls_and_deaths_leave_no_descriptor_and_no_process(executor):
    # Given an executor that has done some of each
    def round(count: int) -> None:
        for call in [executor.send("nap", '{"seconds": 0}') for _ in range(count)] + [
            executor.send("leave", '{"code": 1}') for _ in range(count // 10)
        ]:
            executor.reply(call)

    round(20)
    parent = psutil.Process(executor.process.pid)
    time.sleep(1)
    before = parent.num_fds()
    # When it does many more
    round(200)
    # Then it holds no more than before: two children, its keeper
    wait_until(lambda: len(parent.children(recursive=True)) == 3, 10, "two children and the keeper")
    # A few come and go with the children that are being replaced; a leak would be two for each of the twenty deaths.
    wait_until(lambda: parent.num_fds() <= before + 6, 10, f"about {before} descriptors")


@pytest.mark.slow
def test_children_give_way_and_the_parent_does_not(executor):
    assert int(content(executor.reply(executor.send("niceness"))[0])) == processes.NICE
    assert psutil.Process(executor.process.pid).nice() == 0


@pytest.mark.slow
def test_a_program_in_the_sandbox_of_a_call_sees_nothing_of_the_executor(executor):
    code = "import os; print(sorted(os.environ), [p for p in os.listdir('/proc') if p.isdigit()])"
    ran = json.loads(content(executor.reply(executor.send("program", json.dumps({"code": code})))[0]))
    assert ran["reason"] == ""
    assert "GYMQ" not in ran["stdout"]
    if ran["walls"] == "namespaces":
        assert ran["stdout"].startswith("['HOME', 'LANG', 'PATH', 'TMPDIR'] ['1', '2']")


@pytest.mark.slow
def test_what_calls_have_started_dies_with_a_killed_executor(executor, tmp_path):
    # Given a call that has started processes in sessions of their own, and one that holds the interpreter's lock
    marker = f"gymq-test-{time.time_ns()}"
    executor.send("breed", json.dumps({"marker": marker, "how": "session", "then": "hang"}))
    executor.send("hold_the_gil")
    wait_until(lambda: len(marked(marker)) == 2 and executor.redis.hlen(keys.isolated) == 2)
    family = psutil.Process(executor.process.pid).children(recursive=True)

    # When the executor's parent is killed
    executor.process.kill()

    # Then they all end, and their folder goes
    psutil.wait_procs(family, timeout=5)
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]
    assert not marked(marker)
    wait_until(lambda: not list(tmp_path.glob("gymq-executor-*")), 5, "the end of the folder")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["group", "session"])
@pytest.mark.parametrize(("then", "kind"), [("hang", "timeout"), *heavy(("die", "killed")), ("return", None)])
def test_processes_that_a_call_leaves_behind_are_killed(executor, how, then, kind):
    # When a tool starts processes that ignore SIGTERM, in its group or in sessions of their own, and ends one way or another
    marker = f"gymq-test-{how}-{then}"
    call = executor.send("breed", json.dumps({"marker": marker, "how": how, "then": then}), timeout=3)
    deadline = time.monotonic() + 5
    while not marked(marker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert marked(marker)
    reply, seconds = executor.reply(call)

    # Then the call ends as usual and none of them is left
    print(f"SEEN breed {how} {then}: {reply.fault} after {seconds:.2f} s")
    assert (reply.fault and reply.fault.kind) == kind
    deadline = time.monotonic() + 2
    while marked(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not marked(marker)
    # And the executor still has its children
    assert content(executor.reply(executor.send("nap", '{"seconds": 0}'))[0]).startswith("slept")


@pytest.mark.slow
def test_celery_tells_of_each_isolated_call_once(executor):
    # Given a listener to Celery's events
    from gymq.celery import app

    seen: list[tuple[str, str]] = []

    def listen() -> None:
        with app.connection_for_read() as connection:
            receivers.append(app.events.Receiver(connection, handlers={"*": hear}))
            receivers[0].capture(limit=None, timeout=60, wakeup=False)

    def hear(event) -> None:
        seen.append((event.get("uuid", ""), event["type"]))

    receivers: list = []
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    wait_until(lambda: seen)

    # When a call ends well, one fails in the tool, one runs too long, and one dies
    calls = [
        executor.send("nap", '{"seconds": 0}'),
        executor.send("fail"),
        executor.send("spin", timeout=0.5),
        executor.send("leave", '{"code": 1}'),
    ]
    for call in calls:
        executor.reply(call)
    time.sleep(1)
    receivers[0].should_stop = True
    listener.join(5)

    # Then each has its three events; a fault of the tool is no failure of the executor
    ends = ["task-succeeded", "task-succeeded", "task-failed", "task-failed"]
    for call, end in zip(calls, ends, strict=True):
        assert [kind for uuid, kind in seen if uuid == call] == ["task-received", "task-started", end], seen


@pytest.mark.slow
def test_a_copy_of_a_call_that_is_being_worked_on_is_dropped(executor):
    # Given a call that runs
    first = executor.send("nap", '{"seconds": 1}', rollout="twice", n=1)
    wait_until(lambda: executor.redis.hexists(keys.isolated, first))

    # When it is sent again
    executor.send("nap", '{"seconds": 1}', rollout="twice", n=1)

    # Then it is answered once
    executor.reply(first)
    assert content(executor.reply(executor.send("nap", '{"seconds": 1.5}'))[0])
    assert len(executor.replies[first]) == 1


def test_after_the_executor_is_killed_others_see_it_and_take_its_calls(executor, new_executor):
    # Given an executor that works on a call
    call = executor.send("nap", '{"seconds": 60}', rollout="orphan", n=1)
    wait_until(lambda: executor.redis.hexists(keys.isolated, call))
    owner = executor.redis.hget(keys.isolated, call).decode()
    children = psutil.Process(executor.process.pid).children()
    assert executor.redis.exists(keys.alive(owner))

    # When its parent is killed
    executor.process.kill()

    # Then its children end with it, its key lapses, and it still says what it had begun
    psutil.wait_procs(children, timeout=2)
    assert not any(child.is_running() and child.status() != "zombie" for child in children)
    wait_until(lambda: not executor.redis.exists(keys.alive(owner)), limit=2)
    assert executor.redis.hget(keys.isolated, call).decode() == owner
    # And nothing in the broker would bring it back later
    assert executor.redis.llen("gymq.isolated") == executor.redis.hlen("unacked") == 0

    # When the call is sent again to another executor
    second = new_executor(name="y")
    second.send("nap", '{"seconds": 0}', rollout="orphan", n=1)

    # Then that one takes it
    reply, _ = second.reply(call)
    assert content(reply).startswith("slept")
    assert reply.worker != owner
    wait_until(lambda: second.redis.hlen(keys.isolated) == 0)


@pytest.mark.slow
def test_sigterm_lets_running_calls_end_and_keeps_the_executor_alive_meanwhile(executor):
    # Given two calls that run
    calls = [executor.send("nap", '{"seconds": 3}'), executor.send("spin", timeout=2)]
    wait_until(lambda: executor.redis.hlen(keys.isolated) == 2)
    owner = executor.redis.hget(keys.isolated, calls[0]).decode()

    # When the executor is asked to end
    executor.process.terminate()

    # Then it stays alive for the others while they run, longer than its liveness
    for _ in range(15):
        assert executor.redis.exists(keys.alive(owner))
        time.sleep(0.1)
    # And both are answered, and it ends well
    assert content(executor.reply(calls[0])[0]).startswith("slept")
    assert executor.reply(calls[1])[0].fault.kind == "timeout"
    assert executor.process.wait(15) == 0


@pytest.mark.slow
def test_a_reply_outlives_an_outage_of_redis(executor, redis_server):
    # Given a call that ends while Redis is away, and one that dies meanwhile
    calls = [executor.send("nap", '{"seconds": 1}'), executor.send("spin", timeout=1)]
    wait_until(lambda: executor.redis.hlen(keys.isolated) == 2)

    # When Redis is away for a while
    redis_server.stop()
    time.sleep(3)
    redis_server.start()

    # Then both are answered once it is back
    assert content(executor.reply(calls[0])[0]).startswith("slept")
    assert executor.reply(calls[1])[0].fault.kind == "timeout"
    # And kombu dumped no message into a file
    assert "EMERGENCY" not in executor.log.read_text()
    # And the executor takes calls again, each once
    assert content(executor.reply(executor.send("nap", '{"seconds": 0}'))[0]).startswith("slept")
    assert all(len(found) == 1 for found in executor.replies.values())


def test_children_do_not_hold_the_parents_connections(executor):
    # Given a child that has made its own connection
    pids = {json.loads(content(executor.reply(executor.send("add", '{"n": 1}'))[0]))["pid"] for _ in range(4)}
    listed = executor.redis.client_list()
    parents = {f"{c['addr']}" for c in listed if c["name"] == "executor"}

    # Then no connection that the parent renews its liveness by is open in a child
    for pid in pids:
        own = {f"{c.laddr.ip}:{c.laddr.port}" for c in psutil.Process(pid).net_connections("tcp") if c.status == "ESTABLISHED"}
        mine = {f"{c.laddr.ip}:{c.laddr.port}" for c in psutil.Process(executor.process.pid).net_connections("tcp")}
        assert not own & mine & parents


def test_a_call_that_is_revoked_by_remote_control_is_answered(executor):
    # Given a call that runs
    from gymq.celery import app

    call = executor.send("stubborn", timeout=60)
    wait_until(lambda: executor.redis.hexists(keys.isolated, call))

    # When somebody terminates it
    app.control.revoke(call, terminate=True, signal="KILL")

    # Then it ends as a fault
    reply, _ = executor.reply(call, within=5)
    assert reply.fault.kind == "killed"
    assert content(executor.reply(executor.send("nap", '{"seconds": 0}'))[0]).startswith("slept")
