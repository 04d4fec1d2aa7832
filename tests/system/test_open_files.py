"""A worker that may open few files: it takes as many calls as that allows, and no rollout fails for it."""

from __future__ import annotations

import subprocess

import pytest

from gymq.celery import worker_command
from gymq.store.runs import RunConfig
from tests.support.model_server import run_server
from tests.support.rollouts import ask, produce, start_worker, status, wait_for_workers, weather
from tests.support.shard import keys
from tests.support.waiting import wait_until

#: Open files that the worker may have: fewer than the calls that wait for it.
FILES = 200

#: Rollouts at once.
CALLS = 200


@pytest.mark.slow
def test_a_model_worker_takes_no_more_calls_than_its_open_files_allow(spawn, settings, tmp_path):
    # Given a model worker that may open fewer files than it is to have calls in hand, of a server that takes its time
    for url in run_server("--latency", "0.5"):
        spec = "openai:mock"
        start_worker(spawn, settings, "agent")
        start_worker(spawn, settings, "resource", environments="weather")
        options = {"model": spec, "base_url": f"{url}/v1", "concurrency": CALLS}
        argv, environment = worker_command.command(settings, "model", options, "model")
        log = tmp_path / "model.log"
        with log.open("wb") as output:
            limited = ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", *argv]
            model = spawn(limited, environment | {"OPENAI_API_KEY": "x"}, stdout=output, stderr=subprocess.STDOUT)
        wait_for_workers(settings, 3)
        # When more rollouts are in flight than it has room for
        produce(settings, RunConfig("many", "weather", "tool", spec, concurrency=CALLS), weather(CALLS), consumers=["test"])
        wait_until(lambda: status(settings, "many").ended == CALLS, 60, "the run's end")
        # Then it has said so and lives, none failed, and none was tried again
        assert status(settings, "many").by_status == {"completed": CALLS}
        assert f"takes {FILES - 128} calls at once, not {CALLS}: this process may have {FILES} files open" in log.read_text()
        assert "Too many open files" not in log.read_text()
        assert model.poll() is None
        for box in (keys.retry, keys.suspects):
            assert not ask(settings, "XLEN", box(f"model:{spec}"))
