"""A process that is told to end while Redis is gone ends within ten seconds: it could only wait for it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from gymq.process.embedded_redis import EmbeddedRedis
from gymq.store.keys import Keys
from gymq.store.runs import RunConfig
from tests.support.cli import Cli, data
from tests.support.farm import guest_rows, journal_lines
from tests.support.model_server import run_server
from tests.support.tiers import heavy
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

#: Seconds that a busy machine may take for the ten of the promise; without it, it was 73.
LIMIT = 30


def take_away(server: EmbeddedRedis, how: str) -> None:
    """Kill a server, or let it answer no more."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL if how == "gone" else signal.SIGSTOP)


@pytest.fixture
def server(redis_server: EmbeddedRedis) -> Iterator[EmbeddedRedis]:
    yield redis_server
    if redis_server.alive and redis_server.pid is not None:
        os.kill(redis_server.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("how", "number"),
    [("gone", signal.SIGTERM), *heavy(("gone", signal.SIGINT), ("frozen", signal.SIGTERM), ("frozen", signal.SIGINT))],
)
def test_workers_and_sinks_end_with_calls_in_hand(farm, server, tmp_path, how, number):
    # Given a worker of each role and a sink, with calls of a minute in hand
    journal = tmp_path / "journal"
    processes = {
        "agent": farm.start("agent"),
        "model": farm.start("model", model="scripted"),
        "resource": farm.start("resource", environments="guest"),
        "executor": farm.start("executor", environments="guest"),
    }
    farm.wait_for(3)
    isolated = [row | {"id": f"i{row['id']}"} for row in guest_rows(journal, 2, "rest")]
    farm.produce(RunConfig("cut", "guest", "tool", "scripted"), [*guest_rows(journal, 2, "wait"), *isolated])
    processes["sink"] = farm.sink("cut", tmp_path / "out.jsonl")
    wait_until(lambda: sorted(line[1] for line in journal_lines(journal))[4:] == ["rest"] * 2 + ["wait"] * 2, 30, "the calls")
    wait_until(lambda: farm.ask("HEXISTS", Keys().run("cut"), "to:sink"), 30, "the sink")

    # When Redis is gone and all are told to end
    take_away(server, how)
    time.sleep(0.5)
    began = time.monotonic()
    for process in processes.values():
        process.send_signal(number)

    # Then all end
    took = {name: process.wait(LIMIT) and time.monotonic() - began for name, process in processes.items()}
    print(took)
    codes = {name: process.returncode for name, process in processes.items()}
    assert [codes[role] for role in ("agent", "model", "resource")] == [4, 4, 4]
    assert codes["executor"] in ([4] if number == signal.SIGTERM else [0, 1])  # SIGINT kills its calls, and waits for none
    assert codes["sink"] in (128 + number, 4)  # 4: it was about to connect


@pytest.mark.heavy
@pytest.mark.parametrize(("how", "number"), [("gone", signal.SIGTERM), ("gone", signal.SIGINT), ("frozen", signal.SIGTERM)])
def test_a_run_on_a_server_that_is_gone_ends_and_says_that_it_can_be_continued(spawn, tmp_path, redis_url, server, how, number):
    # Given a run on a shared server, with calls in flight
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "city"}) + "\n" for _ in range(20)))
    cli = Cli(spawn, tmp_path)
    for url in run_server("--port", "0", "--latency", "60"):
        cli.env["GYMQ_REDIS_URL"] = redis_url
        argv = ("--data", data("weather"), "--model", "openai:m", "--base-url", f"{url}/v1", "--out", "out.jsonl")
        run = cli.start("run", "weather", *argv, "--redis", "env", "--limit", 20)
        with Redis.from_url(redis_url) as client:
            wait_until(lambda: client.hlen(Keys().workers) == 3, 30, "the workers")

        # When the server is gone and the run is told to end, then it does
        take_away(server, how)
        began = time.monotonic()
        run.send_signal(number)
        assert run.wait(LIMIT) == 128 + number
        print("took", time.monotonic() - began)
        assert "0 of 20 rollouts are in out.jsonl; the same command continues" in (tmp_path / "run.log").read_text()
