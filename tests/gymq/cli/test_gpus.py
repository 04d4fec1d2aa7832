"""`gymq worker model --gpus`: one worker for each device, under one supervisor."""

from __future__ import annotations

import os
import signal

import psutil
from redis import Redis

from tests.support.shard import keys
from tests.support.waiting import wait_until


def test_each_device_has_a_worker_that_is_started_again(cli, redis_url: str) -> None:
    cli.env["GYMQ_REDIS_URL"] = redis_url
    server = Redis.from_url(redis_url, decode_responses=True)
    parent = cli.start("worker", "model", "--model", "scripted", "--gpus", "0-1", "--name", "m")
    wait_until(lambda: server.hlen(keys.workers) == 2, 30, "two workers")
    one, other = psutil.Process(parent.pid).children()
    assert sorted(next(arg for arg in child.cmdline() if arg.startswith("gpu=")) for child in (one, other)) == [
        "gpu=0",
        "gpu=1",
    ]
    os.kill(one.pid, signal.SIGKILL)
    wait_until(lambda: "started again" in (cli.folder / "worker.log").read_text(), 10, "a new worker")
    wait_until(lambda: len(server.keys(keys.alive("model-*"))) == 2, 30, "two workers")
    assert other.is_running()
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 0
    assert not server.keys(keys.alive("model-*"))


def test_devices_that_make_no_sense_are_told_before_anything_starts(cli) -> None:
    told = cli("worker", "model", "--model", "scripted", "--gpus", "1-0", code=2).stderr
    assert "--gpus is '1-0'" in told
    assert "is no option" in cli("worker", "agent", "--gpus", "0", code=2).stderr
