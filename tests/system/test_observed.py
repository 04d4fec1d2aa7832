"""Real workers are observed: their log lines, their metrics, and what both say of a death."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gymq.store.runs import RunConfig
from tests.support.farm import Farm, guest_rows
from tests.support.waiting import wait_until


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The objects that a process has logged so far."""
    return [json.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()]


def told(folder: Path, name: str, event: str) -> dict[str, Any] | None:
    """The first line of an event."""
    return next((line for line in lines(folder, name) if line.get("event") == event), None)


def scrape(folder: Path, name: str) -> dict[tuple[str, ...], float]:
    """The samples of a process: its values by the sample's name and its labels' values."""
    address = next(
        re.findall(r"http://\S+", line["message"]) for line in lines(folder, name) if "metrics at" in line["message"]
    )
    with urlopen(address[0], timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples}


@pytest.mark.slow
def test_workers_log_and_count_what_they_do_and_the_death_of_one(spawn, farm, tmp_path):
    # Given workers of all roles, with metrics at any free port, and lines for programs
    observed = msgspec.structs.replace(farm.settings, metrics_port=0, log_format="json")
    farm = Farm(spawn, observed, tmp_path)
    victim = farm.start("model", model="scripted")
    for role, options in (("agent", {}), ("resource", {"environments": "guest"}), ("executor", {})):
        farm.start(role, **options)
    farm.wait_for(3)
    wait_until(lambda: told(tmp_path, "executor4", "WorkerReady") is not None, 20)
    # When they have done a run
    farm.produce(RunConfig("seen", "guest", "tool", "scripted"), guest_rows(tmp_path / "journal", 3, "rest", seconds=0.1))
    farm.sink("seen", tmp_path / "out.jsonl").wait(60)
    # Then each is named in its lines, and has counted its part
    ready = told(tmp_path, "model1", "WorkerReady")
    assert ready is not None and ready["serves"] == ["model:scripted"] and ready["worker"].startswith("model-")
    model, agent, resource = (scrape(tmp_path, name) for name in ("model1", "agent2", "resource3"))
    generated = model["gymq_calls_total", "generate", "ok", "model"]
    assert generated == model["gymq_call_seconds_count", "generate", "model", "work"] >= 3
    assert agent["gymq_rollouts_total", "guest", "completed"] == agent["gymq_rollouts_admitted_total",] == 3
    assert resource["gymq_worker_ready", "resource"] == 1
    assert not any(labels[:2] == ("gymq_calls_total", "tool") for labels in resource)  # the executor's calls are its own
    assert scrape(tmp_path, "executor4")["gymq_calls_total", "tool", "ok", "executor"] == 3
    # And when one is killed, another says that it handed back its mail, and counts the death
    victim.send_signal(signal.SIGKILL)
    judges = ("agent2", "resource3")
    wait_until(lambda: any(told(tmp_path, name, "HandedBack") for name in judges), 20, "the hand-back")
    judge = next(name for name in judges if told(tmp_path, name, "HandedBack"))
    assert scrape(tmp_path, judge)["gymq_deaths_total", "model"] == 1
    # And no line is anything but an object
    for name in ("model1", "agent2", "resource3", "executor4"):
        assert all("message" in line for line in lines(tmp_path, name))
