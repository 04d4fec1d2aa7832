"""The commands that do one part each, the real ones, on one server: produce, worker, sink, status, cancel, rm, ..."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from redis import Redis

from tests.support.cli import data, ids, kill_all
from tests.support.shard import keys
from tests.support.waiting import wait_until

WEATHER = ("weather", "--data", data("weather"), "--model", "scripted")


@pytest.fixture
def server(cli, redis_url: str) -> Redis:
    """A client of the server that all commands use."""
    cli.env["GYMQ_REDIS_URL"] = redis_url
    return Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
def workers(cli, server: Redis) -> None:
    """A worker of each role, started by the commands that the help shows, and alive."""
    cli.start("worker", "agent")
    cli.start("worker", "model", "--model", "scripted", "--concurrency", 64)
    cli.start("worker", "resource", "--environments", "weather,counter")
    wait_until(lambda: server.hlen(keys.workers) == 3, 30, "three workers")


def overview(cli, *args: object) -> dict:
    return json.loads(cli("status", *args, "--json").stdout)


@pytest.mark.slow
def test_rows_that_are_enqueued_twice_are_there_once(cli, server: Redis):
    first = cli("produce", *WEATHER, "--run", "r1", "--samples", 2, "--consumer", "jsonl")
    assert "120 rows enqueued, 0 were there" in first.stdout
    again = cli("produce", *WEATHER, "--run", "r1", "--samples", 2, "--consumer", "jsonl")
    assert "0 rows enqueued, 120 were there" in again.stdout
    assert server.hlen(keys.rows("r1")) == 120
    other = cli("produce", *WEATHER, "--run", "r1", "--samples", 3, code=2)
    assert "run 'r1' exists with samples=2, not 3" in other.stderr


@pytest.mark.slow
def test_rows_of_an_environment_in_a_file_are_enqueued_by_its_file(cli, server: Redis):
    (cli.folder / "dice.py").write_text("from gymq import Environment\n\nclass Dice(Environment):\n    name = 'dice'\n")
    (cli.folder / "dice.jsonl").write_text('{"prompt": "Roll."}\n')
    done = cli("produce", "./dice.py:Dice", "--data", "dice.jsonl", "--run", "filed", "--model", "scripted")
    assert "1 rows enqueued" in done.stdout
    assert server.hexists(keys.run("filed"), "spec:dice")


@pytest.mark.slow
def test_a_run_that_is_kept_open_takes_more_rows_and_a_larger_limit(cli, server: Redis):
    more = ("--run", "r1", "--keep-open")
    cli("produce", *WEATHER, *more, "--limit", 30)
    assert "40 rows enqueued, 30 were there" in cli("produce", *WEATHER, *more, "--limit", 70).stdout
    cli("produce", "counter", "--data", data("counter"), "--model", "scripted", *more, code=2)  # another default environment
    assert "50 rows enqueued, 70 were there" in cli("produce", *WEATHER, "--run", "r1").stdout
    assert server.hlen(keys.rows("r1")) == 120
    (cli.folder / "late.jsonl").write_text('{"prompt": "late"}\n')
    late = cli("produce", "weather", "--data", "late.jsonl", "--model", "scripted", "--run", "r1", code=1)
    assert "run 'r1' takes no more rows" in late.stderr


def test_bad_rows_are_one_line_each_and_the_others_are_enqueued(cli, server: Redis):
    (cli.folder / "rows.jsonl").write_text('{"prompt": "a"}\nnonsense\n{"prompt": "b"}\n')
    done = cli("produce", "weather", "--data", "rows.jsonl", "--run", "r1", "--model", "scripted", code=3)
    assert done.stderr.startswith("rows.jsonl:2: is not JSON")
    assert "2 rows enqueued, 0 were there, 1 bad" in done.stdout


def test_separate_commands_do_a_run_and_each_sink_gets_all_of_it(cli, server: Redis, workers: None):
    # Given a sink that waits for a run which does not exist yet
    waiting = cli.start("sink", "jsonl", "--run", "r1", "--out", "out.jsonl")
    wait_until(lambda: "waiting for run r1" in (cli.folder / "sink.log").read_text(), 20)
    # When its connection breaks, and rows come
    for client in server.client_list():
        if client["name"] == "gymq-sink":
            server.client_kill_filter(_id=client["id"])
    cli("produce", *WEATHER, "--run", "r1", "--samples", 2, "--consumer", "jsonl", "--consumer", "copy")
    # Then it writes all of them and ends, and so does another one
    assert waiting.wait(40) == 0
    cli("sink", "jsonl", "--run", "r1", "--consumer", "copy", "--out", "copy.jsonl")
    assert ids(cli.rows()) == ids(cli.rows("copy.jsonl")) == [(row, sample) for row in range(120) for sample in range(2)]
    assert overview(cli, "r1")["runs"][0]["state"] == "done"
    # And once more it says that there is nothing to do
    assert "0 rollouts written" in cli("sink", "jsonl", "--run", "r1", "--out", "out.jsonl").stdout


@pytest.mark.heavy
def test_a_sink_that_is_stopped_or_killed_goes_on(cli, server: Redis, workers: None):
    sink = ("sink", "jsonl", "--run", "r1", "--out", "out.jsonl")
    cli("produce", *WEATHER, "--run", "r1", "--limit", 50, "--keep-open", "--consumer", "jsonl")
    first = cli.start(*sink)
    cli.wait_rows(50)
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(10) == 143
    assert "the same command goes on" in (cli.folder / "sink.log").read_text()
    second = cli.start(*sink)
    cli("produce", *WEATHER, "--run", "r1", "--limit", 80, "--keep-open")
    cli.wait_rows(80)
    kill_all(second)
    cli("produce", *WEATHER, "--run", "r1")
    cli(*sink)
    assert ids(cli.rows()) == [(row, 0) for row in range(120)]


@pytest.mark.slow
def test_a_second_writer_is_refused_and_so_is_a_second_place_under_one_name(cli, server: Redis):
    cli("produce", *WEATHER, "--run", "r1")
    first = cli.start("sink", "jsonl", "--run", "r1", "--out", "out.jsonl")
    wait_until(lambda: "jsonl" in str(server.hkeys(keys.run("r1"))) and (cli.folder / "out.jsonl").exists(), 20)
    busy = cli("sink", "jsonl", "--run", "r1", "--consumer", "other", "--out", "out.jsonl", code=5)
    assert busy.stderr == "gymq: out.jsonl: another process writes this file; stop it or choose another --out\n"
    elsewhere = cli("sink", "jsonl", "--run", "r1", "--out", "elsewhere.jsonl", code=2)
    assert "consumer 'jsonl' of run 'r1' writes to" in elsewhere.stderr
    assert first.poll() is None


@pytest.mark.heavy
def test_status_tells_how_far_runs_are_who_is_alive_and_what_is_missing(cli, server: Redis):
    assert overview(cli)["runs"] == []
    cli("produce", *WEATHER, "--run", "r1", "--consumer", "trainer")
    found = overview(cli, "r1")
    assert [warning.split(",")[0] for warning in found["warnings"]] == [
        "no worker serves agent",
        "no worker serves model:scripted",
        "no worker serves resource:weather",
    ]
    said = cli("status").stdout
    assert "0/120" in said
    assert "workers alive: none" in said
    assert "start `gymq worker model --model scripted`" in said
    cli.start("worker", "agent")
    wait_until(lambda: server.hlen(keys.workers) == 1, 30)
    wait_until(lambda: overview(cli)["workers"] == {"agent": 1}, 10)
    wait_until(lambda: {box["name"]: box["waiting"] for box in overview(cli)["mailboxes"]}["resource:weather"] == 0, 10)
    assert "no run 'nosuch'" in cli("status", "nosuch", code=2).stderr


@pytest.mark.heavy
def test_a_cancelled_run_ends_and_a_removed_one_is_gone(cli, server: Redis, workers: None):
    cli("control", "pause")
    cli("produce", *WEATHER, "--run", "r1", "--consumer", "jsonl")
    assert "paused" in cli("status").stdout
    assert "run r1: cancelled; 0 rollouts were in flight" in cli("cancel", "r1").stdout
    assert overview(cli, "r1")["runs"][0]["state"] == "cancelled"
    cli("control", "resume")
    assert overview(cli)["paused"] is False
    assert cli("rm", "r1", stdin="n\n", code=130).stdout.startswith("run r1 is cancelled: 120 rollouts have not ended")
    cli("rm", "r1", "--yes")
    assert "no run 'r1'" in cli("status", "r1", code=2).stderr
    assert not [key for key in server.scan_iter("*r1*")]
    for command in (("cancel", "r1"), ("rm", "r1", "--yes"), ("consumer", "list", "r1")):
        assert "no run 'r1'" in cli(*command, code=2).stderr


@pytest.mark.heavy
def test_groups_and_rollouts_are_cancelled_and_a_run_is_paused_by_name(cli, server: Redis, workers: None):
    cli("produce", *WEATHER, "--run", "other", "--limit", 1)
    cli("control", "pause", "r1", code=2)
    cli("control", "pause", "other")
    cli("control", "resume", "other")
    cli("control", "pause")
    cli("produce", *WEATHER, "--run", "r1", "--samples", 2, "--consumer", "jsonl")
    assert "paused: no rollouts of run r1 are admitted until `gymq control resume r1`" in cli("control", "pause", "r1").stdout
    cli("control", "resume")
    assert "run r1 is paused; `gymq control resume r1`" in cli("status").stdout
    said = cli("cancel", "r1", "--group", "weather-003", "--group", "r1.4", "--rollout", "5.1", "--rollout", "r1.6.0").stdout
    assert "run r1: 0 rollouts in flight cancelled; 6 have not begun and end when it is their turn" in said
    assert "no group r1.120" in cli("cancel", "r1", "--group", 120, code=2).stderr
    assert "no task of that id that is not finished" in cli("cancel", "r1", "--group", "5.1", code=2).stderr
    assert "write ROW.SAMPLE" in cli("cancel", "r1", "--rollout", "5", code=2).stderr
    cli("control", "resume", "r1")
    cli("sink", "jsonl", "--run", "r1", "--out", "out.jsonl")
    cancelled = {row["rollout_id"] for row in cli.rows() if row["status"] == "cancelled"}
    assert cancelled == {"r1.3.0", "r1.3.1", "r1.4.0", "r1.4.1", "r1.5.1", "r1.6.0"}
    assert "run 'r1' is done" in cli("cancel", "r1", code=1).stderr


@pytest.mark.heavy
def test_a_dropped_consumer_is_waited_for_no_longer(cli, server: Redis, workers: None):
    cli("produce", *WEATHER, "--run", "r1", "--consumer", "trainer")
    cli("sink", "jsonl", "--run", "r1", "--out", "out.jsonl")
    assert overview(cli, "r1")["runs"][0]["state"] == "closed"
    assert cli("consumer", "list", "r1").stdout.splitlines() == [
        "jsonl: 0 of 120 not acknowledged",
        "trainer: 120 of 120 not acknowledged",
    ]
    cli("consumer", "drop", "r1", "trainer")
    assert overview(cli, "r1")["runs"][0]["state"] == "done"
    assert server.xlen(keys.results("r1")) == 0
    assert server.ttl(keys.run("r1")) > 0
    assert "has no consumer 'trainer'; it has jsonl" in cli("consumer", "drop", "r1", "trainer", code=2).stderr


@pytest.mark.heavy
def test_workers_tell_what_they_did_and_drain_when_asked(cli, server: Redis, workers: None):
    told = cli("control", "stats").stdout
    name = next(line.split()[0] for line in told.splitlines() if " model " in line)
    cli("control", "drain", "--worker", name)
    wait_until(lambda: server.hlen(keys.workers) == 2, 20)
    assert "no worker answered to nobody@nowhere" in cli("control", "drain", "--worker", "nobody@nowhere", code=1).stderr


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (("worker", "model"), 2, "a model worker needs --model SPEC"),
        (("worker", "model", "--model", "nosuch:x"), 2, "unknown backend 'nosuch'"),
        (("worker", "agent", "--model", "scripted"), 2, "--model is no option of `gymq worker agent`"),
        (("worker", "resource", "--environments", "nosuch"), 2, "unknown environment 'nosuch'"),
        (("worker", "resource", "--option", "x"), 2, "--option 'x': write KEY=VALUE"),
        (("worker", "agent"), 4, "Redis cannot be reached"),
        (("produce", *WEATHER, "--run", "r1"), 4, "Redis cannot be reached"),
        (("produce", *WEATHER), 2, "--run missing"),
        (("produce", *WEATHER, "--run", "a b"), 2, "run name 'a b'"),
        (("sink", "jsonl", "--run", "r1", "--out", "out.jsonl"), 4, "Redis cannot be reached"),
        (("sink", "nosuch", "--run", "r1", "--out", "out.jsonl"), 2, "unknown sink 'nosuch'; installed: jsonl"),
        (("status",), 4, "or name another one by --redis or GYMQ_REDIS_URL, or a running `gymq run` by --of OUT"),
        (("status", "--of", "nosuch.jsonl"), 4, "no `gymq run` with --out nosuch.jsonl is running"),
        (("flower",), 4, "Redis cannot be reached"),
        (("control", "stats"), 4, "Redis cannot be reached"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(cli, args: tuple[object, ...], code: int, line: str):
    cli.env["GYMQ_REDIS_URL"] = "redis://127.0.0.1:1/0"
    done = cli(*args, code=code)
    assert done.stderr.startswith("gymq: ")
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(cli.folder.iterdir()) == []


def test_environments_are_listed_and_a_broken_one_with_its_error(cli, monkeypatch: pytest.MonkeyPatch):
    package = cli.folder / "site" / "broken-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[gymq.environments]\nbroken = broken_module:World\n")
    cli.env["PYTHONPATH"] = str(cli.folder / "site")
    lines = cli("env", "list").stdout.splitlines()
    weather = next(line for line in lines if line.startswith("weather"))
    assert "get_weather" in weather
    assert "verify" in weather
    assert "gymq: gymq_environments.weather.environment:Weather" in weather
    assert "broken: environment 'broken'" in next(line for line in lines if line.startswith("broken"))


def test_help_answers_at_once_and_every_command_shows_an_example(cli):
    begun = time.monotonic()
    commands = [
        line.split()[0] for line in cli("--help").stdout.split("Commands:")[1].split("Exit codes")[0].strip().splitlines()
    ]
    assert time.monotonic() - begun < 15  # 0.05 s on an idle machine; a hang is what must not be
    assert {"run", "worker", "produce", "sink", "status", "cancel", "rm", "env", "consumer", "flower"} <= set(commands)
    groups = {"consumer": ["list", "drop"], "env": ["list"], "control": ["pause", "resume", "drain", "stats"]}
    for command in commands:
        for args in [(command,), *[(command, name) for name in groups.get(command, [])]]:
            said = cli(*args, "--help").stdout
            assert f"  gymq {command}" in said.split("Examples:")[1]


def test_flower_is_started_where_it_says(cli, server: Redis):
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cli.start("flower", "--port", port)

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            pass
        return False

    wait_until(answers, 20)
    assert f"http://127.0.0.1:{port}/  user gymq, password " in (cli.folder / "flower.log").read_text()
    # And a second one says that the port is taken, and nothing else
    done = cli("flower", "--port", port, code=2)
    assert done.stderr == f"gymq: --port {port}: another process listens there; name another port\n"
    assert done.stdout == ""
