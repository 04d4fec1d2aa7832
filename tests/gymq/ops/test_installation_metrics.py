"""Metrics of an installation, read from Redis."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest

from gymq.ops.installation_metrics import InstallationMetrics
from gymq.store import runs
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards
from tests.support.rollouts import linked
from tests.support.shard import keys
from tests.support.waiting import until

PAGE = Path(__file__).parents[3] / "docs" / "observability.md"


@pytest.fixture
async def connection(settings):
    async with linked(settings) as connection:
        yield connection


@pytest.fixture
async def shards(settings):
    async with Shards(settings, "test") as shards:
        yield shards


def value(metrics: InstallationMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_a_mailbox_shows_what_waits_for_how_long_and_what_is_in_work(connection, shards):
    # Given a run whose model has three calls in its mailbox, one of them taken and one answered
    await runs.create(connection, RunConfig("r", "weather", "tool", "scripted"))
    stream = keys.mailbox("model:scripted")
    await connection.send("XGROUP", "CREATE", stream, keys.GROUP, "0", "MKSTREAM")
    sent = [await connection.send("XADD", stream, f"{int(time.time() * 1000) - 9000}-{n}", "c", "x") for n in range(1, 4)]
    await connection.send("XREADGROUP", "GROUP", keys.GROUP, "w", "COUNT", 2, "STREAMS", stream, ">")
    await connection.send("XACK", stream, keys.GROUP, sent[0])
    await connection.send("XDEL", stream, sent[0])
    # When they are looked at
    metrics = InstallationMetrics()
    await metrics.look(shards)
    # Then each is where it belongs
    its = {"role": "model", "mailbox": "model:scripted"}
    assert [value(metrics, f"gymq_mailbox_{what}", **its) for what in ("waiting", "taken", "workers")] == [1, 1, 0]
    assert value(metrics, "gymq_mailbox_served_total", **its) == 1
    age = value(metrics, "gymq_mailbox_oldest_waiting_seconds", **its)
    assert age is not None and age >= 9
    assert value(metrics, "gymq_mailbox_backlog_seconds", **its) == age
    assert value(metrics, "gymq_run_waits", run="r", cause="no_worker") == 1
    assert value(metrics, "gymq_installation_up") == 1


async def test_every_metric_is_in_the_page_with_its_labels_and_every_one_of_the_page_exists(connection, shards):
    metrics = InstallationMetrics()
    await metrics.look(shards)
    section = PAGE.read_text().split("## Metrics of an installation")[1].split("\n## ")[0]
    told = {}
    for line in section.splitlines():
        if line.startswith("| `gymq_"):
            names, _, labels = line.strip("|").split("|")[:3]
            for name in re.findall(r"`(gymq_\w+)`", names):
                told[name.removesuffix("_total")] = re.findall(r"`(\w+)`", labels)
    assert told == {series.name: list(series.label_names) for series in metrics.series}


async def test_while_redis_is_away_only_that_is_shown(connection, shards):
    metrics = InstallationMetrics()
    stop = asyncio.Event()
    following = asyncio.create_task(metrics.follow(shards, stop))
    await until(lambda: value(metrics, "gymq_admission_paused") == 0)
    metrics.lost()
    assert value(metrics, "gymq_installation_up") == 0
    assert value(metrics, "gymq_admission_paused") is None
    stop.set()
    await following
