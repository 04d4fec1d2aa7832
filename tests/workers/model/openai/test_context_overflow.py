"""A conversation that outgrows the model is truncated, and keeps what it has."""

from __future__ import annotations

import base64

import pytest

from gymq.store.runs import RunConfig


@pytest.mark.slow
def test_turns_and_tokens_of_earlier_calls_stay_when_the_context_overflows(farm, server, tmp_path, no_leaks):
    # Given a model that gives token ids and whose context ends behind the first tool call
    farm.start("agent")
    farm.start("resource", environments="weather")
    farm.start("model", model="openai:mock-short", base_url=f"{server}/v1")
    farm.wait_for(3)
    # When a rollout goes on behind it
    config = RunConfig("long", "weather", "tool", "openai:mock-short", samples=2)
    farm.produce(config, [{"id": "w", "prompt": "What is the weather in Paris?", "city": "Paris"}])
    rollouts = farm.finish("long", tmp_path / "out.jsonl")
    # Then it is truncated and scored, and has all turns, tokens and logprobs until then
    assert len(rollouts) == 2
    for rollout in rollouts:
        assert (rollout["status"], rollout["stop"], rollout["error"]) == ("truncated", "context_overflow", None)
        assert rollout["reward"] is not None
        assert [message["role"] for message in rollout["messages"]] == ["user", "assistant", "tool"]
        assert (rollout["turns"], rollout["usage"]["output_tokens"]) == (1, 7)
        first, second = [call for call in rollout["calls"] if call["kind"] == "generate"]
        assert len(base64.b64decode(first["tokens"]["output"])) == len(base64.b64decode(first["tokens"]["logprobs"])) > 0
        assert (second["fault"]["kind"], "tokens" in second) == ("context_overflow", False)
        assert "maximum context length is 4096" in second["fault"]["message"]
