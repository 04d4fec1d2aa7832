"""Real workers export a trace for each rollout to a collector: every call once, with its times, whoever did it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gymq.observe.spans import span_id, trace_id
from gymq.store.runs import RunConfig
from tests.support.collector import Collector, attributes
from tests.support.waiting import wait_until

#: Rows with an isolated tool and verifier, and one whose tool runs in the resource worker.
ROWS = [{"id": f"t{i}", "prompt": "go", "calls": ["pid"]} for i in range(2)]
ROWS += [{"id": "w", "environment": "weather", "prompt": "What is the weather in Oslo?"}]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


@pytest.mark.slow
def test_a_rollout_is_one_trace_and_each_of_its_calls_one_span(farm, tmp_path, monkeypatch, collector):
    # Given two agent workers, a worker of each other role, and a collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    agents = [farm.start("agent"), farm.start("agent")]
    farm.start("model", model="scripted")
    farm.start("resource", environments="hostile,weather")
    farm.wait_for(4)
    farm.start("executor", processes=2)
    # When rollouts have ended, and the agents were drained
    farm.produce(RunConfig("traced", "hostile", "tool", "scripted"), ROWS)
    records = farm.finish("traced", tmp_path / "out.jsonl")
    for agent in agents:
        agent.terminate()
    assert [agent.wait(30) for agent in agents] == [0, 0]
    # Then the collector has a span for each rollout and for each call of their records, and no other
    expected = sum(1 + len(record["calls"]) for record in records)
    wait_until(lambda: len(collector.spans) >= expected, 10)
    assert len(collector.spans) == expected
    born = farm.status("traced").config.created
    found = {span.span_id: (service, span) for service, span in collector.spans}
    for record in records:
        rollout, trace = record["rollout_id"], trace_id(record["rollout_id"], born).to_bytes(16)
        root = span_id(rollout, born).to_bytes(8)
        service, span = found[root]
        assert (service, span.name, span.trace_id, span.parent_span_id) == ("gymq-agent", "invoke_agent tool", trace, b"")
        assert attributes(span)["gymq.status"] == "completed"
        assert attributes(span)["gymq.reward"] == record["reward"]
        for call in record["calls"]:
            service, span = found[span_id(f"{rollout}:{call['call'].replace('.', ':')}", born).to_bytes(8)]
            assert (span.trace_id, span.parent_span_id) == (trace, root)
            assert service == f"gymq-{call['worker'].partition('-')[0]}"
            facts = attributes(span)
            assert (facts["gymq.worker"], facts["gen_ai.conversation.id"]) == (call["worker"], rollout)
            assert facts["gymq.queue_seconds"] == pytest.approx(call["started"] - call["queued"], abs=1e-6)
            assert facts["gymq.work_seconds"] == pytest.approx(call["finished"] - call["started"], abs=1e-6)
            assert span.start_time_unix_nano == pytest.approx(call["queued"] * 1e9, abs=1000)
    assert {service for service, _ in collector.spans} == {"gymq-agent", "gymq-model", "gymq-resource", "gymq-executor"}
