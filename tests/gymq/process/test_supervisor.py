"""Children and their supervisor, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gymq.errors import GymqError
from gymq.process import supervisor as module
from gymq.process.child_process import ChildProcess, describe
from gymq.process.supervisor import ChildSpec, Supervisor
from tests.support.redis_server import running
from tests.support.waiting import wait_until

#: Says that it runs, and on SIGTERM what its name is; `--deaf` ignores SIGTERM.
WORKER = """
import signal, sys, time
def stop(*_):
    with open(sys.argv[1], "a") as file: file.write(sys.argv[2] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "--deaf" in sys.argv else stop)
print("up", flush=True)
while True: time.sleep(600)
"""

#: Starts a grandchild that ignores SIGTERM, and says its number.
WITH_GRANDCHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
print(subprocess.Popen([sys.executable, "-c", deaf]).pid, flush=True)
if "--crash" in sys.argv: sys.exit(3)
while True: time.sleep(600)
"""

#: Starts a child, says its number, and waits to be killed.
PARENT = """
import pathlib, sys, time
from gymq.process.child_process import ChildProcess
code = "import time; print('up', flush=True); time.sleep(600)"
print(ChildProcess([sys.executable, "-c", code], {}, "child", pathlib.Path(sys.argv[1])).pid, flush=True)
time.sleep(600)
"""

Start = Callable[..., ChildProcess]
Supervise = Callable[..., Supervisor]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: list[ChildProcess] = []

    def start(code: str, *arguments: str, env: dict[str, str] | None = None) -> ChildProcess:
        child = ChildProcess([sys.executable, "-c", code, *arguments], env or {}, "child", tmp_path / "child.log")
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    started: list[Supervisor] = []

    def supervise(*specs: ChildSpec) -> Supervisor:
        supervisor = Supervisor(specs)
        started.append(supervisor)
        supervisor.start()
        return supervisor

    yield supervise
    for supervisor in started:
        supervisor.kill()


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., ChildSpec]:
    def spec(name: str, code: str = WORKER, *arguments: str, **fields: object) -> ChildSpec:
        argv = (sys.executable, "-c", code, str(tmp_path / "order"), name, *arguments)
        return ChildSpec(name=name, argv=argv, log=tmp_path / f"{name}.log", **fields)

    return spec


def grandchild(child: ChildProcess) -> int:
    wait_until(lambda: child.tail(1))
    return int(child.tail(1)[0])


def up(supervisor: Supervisor, *names: str) -> None:
    wait_until(lambda: all(supervisor.children[name].tail(1) == ["up"] for name in names), what=f"{names} are up")


def poll_until(supervisor: Supervisor, condition: Callable[[], object], limit: float = 10.0) -> list[str]:
    events: list[str] = []

    def look() -> object:
        events.extend(supervisor.poll())
        return condition()

    wait_until(look, limit)
    return events


def test_a_child_writes_to_its_log_and_gets_its_environment(start: Start):
    child = start("import os, sys; print(os.environ['COLOUR'], flush=True); sys.exit('no good')", env={"COLOUR": "blue"})
    assert child.wait(10)
    assert child.tail(5) == ["blue", "no good"]
    assert child.tail(1) == ["no good"]
    assert child.code == 1
    assert not child.alive


def test_the_tail_has_nothing_of_an_earlier_process_with_the_same_log(start: Start):
    assert start("print('first')").wait(10)
    second = start("print('second')")
    assert second.wait(10)
    assert second.tail(5) == ["second"]


def test_a_child_is_asked_to_stop_before_it_is_killed(start: Start, tmp_path: Path):
    child = start(WORKER, str(tmp_path / "order"), "me")
    wait_until(lambda: child.tail(1))
    child.terminate(10)
    assert child.code == 0
    assert (tmp_path / "order").read_text() == "me\n"


def test_a_child_that_does_not_stop_is_killed_after_its_grace(start: Start):
    child = start(WORKER, "", "", "--deaf")
    wait_until(lambda: child.tail(1))
    began = time.monotonic()
    child.terminate(0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert child.code == -signal.SIGKILL


def test_grandchildren_die_with_a_child_that_stops(start: Start):
    child = start(WITH_GRANDCHILD)
    pid = grandchild(child)
    child.terminate(10)
    assert child.code == 0
    wait_until(lambda: not running(pid), 5)


def test_grandchildren_die_with_a_child_that_is_killed(start: Start):
    child = start(WITH_GRANDCHILD)
    pid = grandchild(child)
    child.kill()
    wait_until(lambda: not running(pid), 5)


def test_grandchildren_die_with_a_child_that_crashes(start: Start):
    child = start(WITH_GRANDCHILD, "--crash")
    pid = grandchild(child)
    wait_until(lambda: not child.alive)
    assert child.code == 3
    wait_until(lambda: not running(pid), 5)


@pytest.mark.parametrize("when", ["while its child runs", "before its child is the program"])
def test_a_killed_parent_takes_its_child_along(when: str, tmp_path: Path, spawn):
    log = tmp_path / "log"
    parent = spawn([sys.executable, "-c", PARENT, str(log)], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    if when == "while its child runs":
        wait_until(lambda: log.read_text() == "up\n")
    assert running(pid)
    parent.kill()
    wait_until(lambda: not running(pid), 5)


def test_a_child_has_its_own_session_so_that_ctrl_c_does_not_reach_it(start: Start):
    child = start("import time; time.sleep(600)")
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid


def test_a_broken_pipe_ends_a_program_as_in_a_shell(tmp_path: Path):
    child = ChildProcess(["sh", "-c", "yes | head -n 1"], {}, "pipe", tmp_path / "log")
    assert child.wait(10)
    assert child.tail(5) == ["y"]


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path):
    with pytest.raises(GymqError, match="sink: there is no program 'no-such-program'"):
        ChildProcess(["no-such-program"], {}, "sink", tmp_path / "log")


def test_what_a_child_said_last_is_told_when_it_dies(supervise: Supervise, spec):
    code = "import sys; print('gymq: it ran out of \\x1b[31mfiles', file=sys.stderr); sys.exit(1)"
    supervisor = supervise(spec("model", code))
    (event, *_) = poll_until(supervisor, lambda: supervisor.children.get("model") is None)
    assert event.startswith("model: exit code 1 after ")
    assert "model.log ends with: it ran out of ?[31mfiles); starting it again in 0.5 s" in event


def test_exit_codes_are_told_in_words():
    assert describe(3) == "exit code 3"
    assert describe(-9) == "killed by SIGKILL"
    assert describe(-40) == "killed by signal 40"
    assert describe(None) == "no exit code"


def test_a_killed_child_is_started_again(supervise: Supervise, spec):
    supervisor = supervise(spec("agent"), spec("model"))
    up(supervisor, "agent", "model")
    before = {name: child.pid for name, child in supervisor.children.items()}
    os.kill(before["agent"], signal.SIGKILL)
    events = poll_until(
        supervisor, lambda: supervisor.children.get("agent") and before["agent"] != supervisor.children["agent"].pid
    )
    up(supervisor, "agent")
    assert events[0].startswith("agent: killed by SIGKILL after ")
    assert events[1:] == ["agent: started again"]
    assert supervisor.children["model"].pid == before["model"]


def test_nothing_happens_while_all_is_well(supervise: Supervise, spec):
    supervisor = supervise(spec("agent"))
    assert [supervisor.poll() for _ in range(5)] == [[]] * 5


def test_the_wait_before_another_start_doubles(supervise: Supervise, spec, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    supervisor = supervise(spec("agent", "raise SystemExit(3)"))
    events: list[str] = []
    with pytest.raises(GymqError):
        while True:
            events += supervisor.poll()
            time.sleep(0.005)
    assert [event.rpartition(" in ")[2] for event in events if "exit code" in event] == ["0.01 s", "0.02 s", "0.04 s", "0.08 s"]


def test_a_child_that_cannot_live_is_given_up_with_its_name_and_its_last_lines(
    supervise: Supervise, spec, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    supervisor = supervise(spec("agent"), spec("model", "raise RuntimeError('no GPU')"))
    with pytest.raises(GymqError, match=r"model died 5 times in a row .*exit code 1; .*RuntimeError: no GPU") as given_up:
        poll_until(supervisor, lambda: False)
    assert "\n" not in str(given_up.value)
    supervisor.stop()
    assert not any(child.alive for child in supervisor.children.values())


def test_deaths_after_a_long_life_are_never_too_many(supervise: Supervise, spec, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    monkeypatch.setattr(module, "QUICK", 0.0)
    supervisor = supervise(spec("agent", "raise SystemExit(3)"))
    starts: list[str] = []

    def enough() -> bool:
        starts.extend(event for event in supervisor.poll() if event.endswith("started again"))
        return len(starts) > module.QUICK_DEATHS + 1

    wait_until(enough)


def test_quick_deaths_are_forgiven_while_the_work_goes_on(supervise: Supervise, spec, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    supervisor = supervise(spec("agent", "raise SystemExit(3)"))
    starts: list[str] = []

    def enough() -> bool:
        starts.extend(event for event in supervisor.poll() if event.endswith("started again"))
        supervisor.forgive()
        return len(starts) > module.QUICK_DEATHS + 1

    wait_until(enough)


def test_a_child_that_finishes_is_left_alone(supervise: Supervise, spec):
    supervisor = supervise(spec("sink", "", finishes=True), spec("agent"))
    assert poll_until(supervisor, lambda: supervisor.finished) == ["sink: finished"]
    assert supervisor.finished == {"sink"}
    assert supervisor.poll() == []
    assert list(supervisor.children) == ["agent"]


def test_a_child_that_should_finish_but_fails_is_started_again(supervise: Supervise, spec, tmp_path: Path):
    once = f"import os; path = {str(tmp_path / 'mark')!r}; second = os.path.exists(path); open(path, 'w'); exit(not second)"
    supervisor = supervise(spec("sink", once, finishes=True))
    events = poll_until(supervisor, lambda: supervisor.finished)
    assert [event.split(";")[0].split(" after")[0] for event in events] == [
        "sink: exit code 1",
        "sink: started again",
        "sink: finished",
    ]


def test_a_fatal_exit_code_is_raised_at_once_and_passed_on(supervise: Supervise, spec):
    busy = "import sys; print('gymq: out.jsonl is busy'); sys.exit(5)"
    supervisor = supervise(spec("sink", busy, finishes=True, fatal=frozenset({5})))
    with pytest.raises(GymqError, match=r"^sink cannot go on: out\.jsonl is busy$") as fatal:
        poll_until(supervisor, lambda: False)
    assert fatal.value.exit_code == 5


def test_a_child_without_a_fault_that_should_not_end_is_started_again(supervise: Supervise, spec):
    supervisor = supervise(spec("agent", ""))
    assert poll_until(supervisor, lambda: not supervisor.children)[0].startswith("agent: exit code 0")


def test_higher_tiers_stop_before_lower_ones(supervise: Supervise, spec, tmp_path: Path):
    names = ("model", "agent", "sink")
    supervisor = supervise(spec("agent", tier=1), spec("sink", tier=2), spec("model", tier=0))
    assert list(supervisor.children) == list(names)
    up(supervisor, *names)
    supervisor.stop()
    assert (tmp_path / "order").read_text().split() == ["sink", "agent", "model"]


def test_children_of_one_tier_stop_at_the_same_time(supervise: Supervise, spec):
    names = ("a", "b", "c")
    supervisor = supervise(*(spec(name, WORKER, "--deaf", grace=1.0) for name in names))
    up(supervisor, *names)
    children = list(supervisor.children.values())
    began = time.monotonic()
    supervisor.stop()
    assert 1.0 <= time.monotonic() - began < 2.9  # one after the other, they would take three seconds
    assert [child.code for child in children] == [-signal.SIGKILL] * 3


def test_a_second_ctrl_c_while_stopping_kills_all(supervise: Supervise, spec):
    supervisor = supervise(spec("a", WORKER, "--deaf", grace=60), spec("b", WORKER, "--deaf", grace=60, tier=1))
    up(supervisor, "a", "b")
    children = list(supervisor.children.values())
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        supervisor.stop()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert [child.code for child in children] == [-signal.SIGKILL] * 2


def test_children_that_started_are_stopped_when_another_cannot_be(spec, tmp_path: Path):
    supervisor = Supervisor([spec("agent"), ChildSpec(name="sink", argv=("no-such-program",), log=tmp_path / "log")])
    with pytest.raises(GymqError, match="no-such-program"):
        supervisor.start()
    assert [child.alive for child in supervisor.children.values()] == [False]


def test_two_children_of_one_name_are_refused(spec):
    with pytest.raises(GymqError, match="two children have the name 'agent'"):
        Supervisor([spec("agent"), spec("agent")])
