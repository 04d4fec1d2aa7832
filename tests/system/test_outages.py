"""Services that go away and come back, limits and budgets, on real workers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter

import pytest

from gymq.store.runs import RunConfig
from tests.support.farm import slow_rows
from tests.support.servers import free_port
from tests.support.shard import keys
from tests.support.tiers import heavy
from tests.support.waiting import wait_until

#: Seconds that the judge is away; a person may want to see a minute of it.
OUTAGE = float(os.environ.get("GYMQ_TEST_OUTAGE", "8"))


def journal_of(path) -> Counter[str]:
    """How often each thing happened: `<task> <what>`."""
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def rows(tmp_path, count: int, **fields):
    journal = str(tmp_path / "journal")
    return [{"id": f"t{i}", "prompt": "go", "journal": journal, **fields} for i in range(count)]


class Service:
    """A service at a port, from now on."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_server(("127.0.0.1", port), backlog=100)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            while True:
                self.socket.accept()[0].close()
        except OSError:
            return


@pytest.mark.slow
@pytest.mark.parametrize("how", ["asked", *heavy("called")])
def test_a_judge_that_is_away_for_a_while_costs_no_reward_and_no_call_of_the_model(farm, tmp_path, no_leaks, how):
    # Given rollouts whose judge is down: one that gymq asks, or a service that the verifier calls by itself
    down, port = tmp_path / "down", free_port()
    down.touch()
    fields = {"down": str(down), "judge": "scripted:judge"} if how == "asked" else {"port": port}
    farm.start_roles("judged")
    farm.start("model", model="scripted:judge")
    farm.wait_for(4)
    farm.produce(RunConfig("away", "judged", "tool", "scripted"), rows(tmp_path, 20, **fields))
    answers = Counter({f"t{i} generate": 1 for i in range(20)})
    wait_until(lambda: journal_of(tmp_path / "journal") >= answers, 30, "the answers")
    # When it comes back
    time.sleep(OUTAGE)
    assert farm.status("away").ended == 0
    down.unlink()
    service = Service(port)
    rollouts = farm.finish("away", tmp_path / "out.jsonl", 60)
    service.socket.close()
    # Then every rollout has its reward, and its model was called once
    assert [rollout["reward"] for rollout in rollouts] == [0.75] * 20
    assert {(rollout["status"], rollout["no_reward"]) for rollout in rollouts} == {("completed", None)}
    happened = journal_of(tmp_path / "journal")
    assert {happened[f"t{i} generate"] for i in range(20)} == {1}
    kind = "ask" if how == "asked" else "verify"
    for rollout in rollouts:
        calls = Counter(call["kind"] for call in rollout["calls"])
        assert calls["generate"] == 1
        # 1, 2, 4 ... seconds apart, spread: not a storm
        assert 3 <= calls[kind] <= 12
        assert {call["fault"]["kind"] for call in rollout["calls"] if "fault" in call} <= {"model_unavailable", "unavailable"}


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["judged_apart", *heavy("judged")])
def test_a_verifier_asks_its_judge_as_often_as_it_needs(farm, tmp_path, no_leaks, environment):
    # Given a judge of its own, and verifiers with three questions each, in the worker or in an executor
    farm.start_roles(environment)
    farm.start("model", model="scripted:judge")
    farm.wait_for(4)
    if environment == "judged_apart":
        farm.start("executor")
    config = RunConfig("asks", environment, "tool", "scripted", judge="scripted:judge")
    # When they run
    farm.produce(config, rows(tmp_path, 10, questions=3))
    rollouts = farm.finish("asks", tmp_path / "out.jsonl")
    # Then the judge answered, and the conversations are the policy's alone
    for rollout in rollouts:
        assert (rollout["reward"], rollout["metrics"]) == (0.75, {"asked": 3})
        assert [message["role"] for message in rollout["messages"]] == ["user", "assistant"]
        kinds = ["generate", "verify", "ask", "verify", "ask", "verify", "ask", "verify"]
        assert [call["kind"] for call in rollout["calls"]] == kinds
        assert {call["name"] for call in rollout["calls"] if call["kind"] == "ask"} == {"scripted:judge"}
        workers = {kind: {call["worker"] for call in rollout["calls"] if call["kind"] == kind} for kind in ("generate", "ask")}
        assert not workers["generate"] & workers["ask"]


@pytest.mark.slow
def test_a_judge_that_talks_nonsense_leaves_the_reward_out(farm, tmp_path, no_leaks):
    farm.start_roles("judged")
    farm.produce(RunConfig("nonsense", "judged", "tool", "scripted"), rows(tmp_path, 1, verdict="lovely"))
    (rollout,) = farm.finish("nonsense", tmp_path / "out.jsonl")
    assert (rollout["status"], rollout["reward"]) == ("completed", None)
    assert rollout["no_reward"].startswith("verifier: ValueError")


def test_tools_that_met_an_outage_run_again_and_those_that_did_not_do_not(farm, tmp_path, no_leaks):
    # Given two tool calls of a turn whose service is away, in rollouts with and without tries
    port = free_port()
    farm.start_roles("judged")
    tasks = rows(tmp_path, 1, fetches=2, port=port)
    farm.produce(RunConfig("none", "judged", "tool", "scripted", infra_retries=1), tasks)
    (rollout,) = farm.finish("none", tmp_path / "out0.jsonl")
    # Then one is spent and fails
    assert (rollout["status"], rollout["error"]["kind"]) == ("failed", "unavailable")
    assert rollout["error"]["message"].endswith("(sent 2 times)")
    assert journal_of(tmp_path / "journal") == {"t0 generate": 1, "t0 fetch": 4}
    # and the other goes on when the service is back
    (tmp_path / "journal").unlink()
    farm.produce(RunConfig("some", "judged", "tool", "scripted"), tasks)
    wait_until(lambda: journal_of(tmp_path / "journal")["t0 fetch"] >= 2, 20, "the tools to be tried")
    service = Service(port)
    (rollout,) = farm.finish("some", tmp_path / "out1.jsonl")
    service.socket.close()
    assert (rollout["status"], rollout["reward"], rollout["tool_calls"]) == ("completed", 0.75, 2)
    assert journal_of(tmp_path / "journal")["t0 generate"] == 2


@pytest.mark.slow
def test_the_budget_for_other_faults_is_another_one(farm, tmp_path, no_leaks):
    farm.start_roles("faulty")
    farm.produce(RunConfig("data", "faulty", "tool", "scripted", data_retries=1), [{"prompt": "go", "raise": "tool"}])
    (rollout,) = farm.finish("data", tmp_path / "out.jsonl")
    assert [call["kind"] for call in rollout["calls"]] == ["open", "generate", "tool", "tool", "close"]
    assert (rollout["status"], rollout["error"]["kind"]) == ("failed", "environment")
    assert rollout["error"]["message"].endswith("(sent 2 times)")


@pytest.mark.slow
def test_time_is_over_while_the_model_hangs(farm, tmp_path, no_leaks):
    # Given a model that does not answer
    farm.start_roles("judged")
    farm.start("model", model="scripted:judge")
    farm.wait_for(4)
    config = RunConfig("hangs", "judged", "tool", "scripted", max_seconds=2.0, judge="scripted:judge")
    farm.produce(config, rows(tmp_path, 5, hang=6))
    # When the rollouts' time is over
    rollouts = farm.finish("hangs", tmp_path / "out.jsonl", 30)
    # Then they are scored long before it would have answered
    for rollout in rollouts:
        assert (rollout["status"], rollout["stop"], rollout["reward"]) == ("truncated", "max_seconds", 0.75)
        assert (rollout["turns"], len(rollout["messages"])) == (0, 1)
        assert rollout["finished_at"] - rollout["started_at"] < 5.5
    # and what it answers after all is forgotten
    wait_until(lambda: farm.ask("XLEN", keys.mailbox("model:scripted")) == 0, 20, "the model to answer")
    assert farm.status("hangs").ended == 5


@pytest.mark.slow
def test_a_model_that_takes_too_long_is_asked_again_and_then_given_up(farm, tmp_path, no_leaks):
    farm.start_roles("judged")
    config = RunConfig("slowly", "judged", "tool", "scripted", call_timeout=0.3, infra_retries=1)
    farm.produce(config, rows(tmp_path, 1, hang=30))
    (rollout,) = farm.finish("slowly", tmp_path / "out.jsonl")
    assert (rollout["status"], rollout["error"]["kind"]) == ("failed", "timeout")
    assert "longer than 0.3 s" in rollout["error"]["message"]
    assert journal_of(tmp_path / "journal") == {"t0 generate": 2}


@pytest.mark.slow
def test_each_limit_ends_a_rollout_with_what_it_has(farm, tmp_path, no_leaks):
    # Given rollouts of many turns with a tool call each
    farm.start_roles("slow")
    limits = {"max_tool_calls": 2, "max_working_seconds": 1.0, "max_seconds": 3.0, "max_turns": 2}
    script = [[["step", {"number": n}]] for n in range(40)]
    for limit, value in limits.items():
        config = RunConfig(limit, "slow", "tool", "scripted", **({"max_turns": 99} | {limit: value}))
        farm.produce(config, slow_rows(tmp_path / "journal", 3, script, seconds=0.2))
    # When they run
    for limit in limits:
        for rollout in farm.finish(limit, tmp_path / f"{limit}.jsonl"):
            # Then each was truncated by it, and what it did was scored; every call of a tool is answered
            assert (rollout["status"], rollout["stop"]) == ("truncated", limit)
            done = [call for call in rollout["calls"] if call["kind"] == "tool"]
            assert rollout["reward"] == float(len(done)) < 40
            assert len(done) == 2 or limit in ("max_seconds", "max_working_seconds")
            asked = sum(len(message.get("tool_calls", [])) for message in rollout["messages"])
            assert asked == sum(message["role"] == "tool" for message in rollout["messages"]) < 40
