"""Metrics: counted from events, and served."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gymq.errors import UsageError
from gymq.observe import events
from gymq.observe.events import CallFinished, MailTaken, OutageBegan, OutageEnded, RolloutFinished, StepCommitted, emit
from gymq.observe.metrics import ProcessMetrics, WorkerGauges
from gymq.observe.metrics_server import MetricsServer
from gymq.wire.calls import Call, Reply, Usage

PAGE = Path(__file__).parents[3] / "docs" / "observability.md"


@pytest.fixture
def metrics() -> Iterator[ProcessMetrics]:
    made = ProcessMetrics(shards=2)
    yield made
    made.close()


def value(metrics: ProcessMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def finished(kind: str = "generate", merged: bool = True, usage: Usage | None = None, waited: float = 0.0) -> CallFinished:
    call = Call("r.0.0", 1, 0, kind, "r", "dice", 0, queued=10.0)  # type: ignore[arg-type]
    return CallFinished.of("model", call, Reply(0, 10.5, 12.5, "w", waited=waited), merged, usage)


def rollout(reward: float | None, status: str = "completed") -> RolloutFinished:
    return RolloutFinished("r.0.0", "r", "dice", status, "", "", reward, "", 2, 1, Usage(), 100.0, 103.0, "tool", "m", 9.0)


def test_a_call_is_counted_with_its_times_by_stage_and_its_tokens(metrics):
    emit(finished(usage=Usage(100, 20, 60), waited=1.5))
    emit(finished(merged=False))
    assert value(metrics, "gymq_calls_total", role="model", kind="generate", outcome="ok") == 1
    assert value(metrics, "gymq_calls_total", role="model", kind="generate", outcome="stale") == 1
    seconds = {
        stage: value(metrics, "gymq_call_seconds_sum", role="model", kind="generate", stage=stage)
        for stage in ("queue", "limit", "work")
    }
    assert seconds == {"queue": 1.0, "limit": 1.5, "work": 2.5}
    assert value(metrics, "gymq_input_tokens_total", kind="generate") == 100
    assert value(metrics, "gymq_cached_tokens_total", kind="generate") == 60


def test_a_histogram_counts_each_value_in_all_buckets_from_its_own_on(metrics):
    emit(rollout(0.5))
    emit(rollout(1.0))
    emit(rollout(None, "failed"))
    buckets = [value(metrics, "gymq_rollout_reward_bucket", environment="dice", le=le) for le in ("0.4", "0.5", "1.0", "+Inf")]
    assert buckets == [0, 1, 2, 2]
    assert value(metrics, "gymq_rollout_reward_count", environment="dice") == 2
    assert value(metrics, "gymq_rollouts_without_reward_total", environment="dice") == 1
    assert value(metrics, "gymq_rollouts_total", environment="dice", status="failed") == 1


def test_an_outage_shows_while_it_lasts(metrics):
    assert value(metrics, "gymq_redis_up", shard="1") == 1
    emit(OutageBegan(1, "redis://here", "refused"))
    assert value(metrics, "gymq_redis_up", shard="0") == 1
    assert value(metrics, "gymq_redis_up", shard="1") == 0
    emit(OutageEnded(1, "redis://here", 3.0))
    assert value(metrics, "gymq_redis_up", shard="1") == 1
    assert value(metrics, "gymq_outage_seconds_total", shard="1") == 3


def test_metrics_that_are_closed_count_nothing_and_leave_no_subscriber():
    made = ProcessMetrics(shards=2)
    made.close()
    emit(MailTaken("agent", 5, 0))
    assert value(made, "gymq_mail_taken_total", role="agent") is None
    assert not events.wanted(MailTaken)


def test_a_worker_is_asked_for_what_it_has_in_hand(metrics):
    metrics.watch(lambda: WorkerGauges("model", 3, 8, True, {"kv_cache": 0.25}, 7))
    assert value(metrics, "gymq_worker_held", role="model") == 3
    assert value(metrics, "gymq_worker_ready", role="model") == 1
    assert value(metrics, "gymq_backend_load", figure="kv_cache") == 0.25
    assert value(metrics, "gymq_policy_version") == 7


def test_every_metric_is_in_the_page_with_its_labels_and_every_one_of_the_page_exists(metrics):
    metrics.watch(lambda: WorkerGauges("model", 0, 1, True, {"kv_cache": 0.0}, 1))
    emit(finished(usage=Usage(1, 1, 1), waited=1.0))
    told = {}
    section = PAGE.read_text().split("## Metrics of a process")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `gymq_"):
            names, _, labels = line.strip("|").split("|")[:3]
            for name in re.findall(r"`(gymq_\w+)`", names):
                told[name.removesuffix("_total")] = set(re.findall(r"`(\w+)`", labels))
    made = {family.name: family for family in metrics.registry.collect()}
    assert told.keys() == made.keys()
    for name, family in made.items():
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == told[name], name


def test_metrics_are_served_as_text_that_prometheus_reads(metrics):
    emit(StepCommitted("a", "r.0.0", "r", "dice", 0, [], 0.0, "m", 9.0))
    server = MetricsServer(metrics.registry, "127.0.0.1", 0)
    try:
        with urlopen(server.address, timeout=10) as answer:
            text = answer.read().decode()
    finally:
        server.close()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert "gymq_steps" in families
    assert text == generate_latest(metrics.registry).decode()


def test_a_server_without_threads_answers_when_it_is_told_to(metrics):
    server = MetricsServer(metrics.registry, "127.0.0.1", 0, threads=False)
    port = int(server.address.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        server.handle()
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 200 OK")
    server.close()


def test_a_port_that_is_taken_is_refused_in_one_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError) as error:
            MetricsServer(CollectorRegistry(), "127.0.0.1", port)
    assert str(error.value).startswith(f"metrics: nothing can listen at 127.0.0.1:{port}: Address already in use;")
