"""Calls that are sent again, how often, and rewards that are waited for."""

from __future__ import annotations

import pytest
from gymq_workers.agent import retry_budget
from gymq_workers.agent.limits import OVERDUE

from gymq.api.agent import CallTool, Finish, Generate, Respond
from gymq.errors import Fault
from tests.support.play import (
    Play,
    Script,
    calls,
    failed,
    friendly,
    messages,
    only,
    opened,
    record,
    records,
    reply,
    result,
    said,
    scored,
    spec,
)

ALL = ("open", "respond", "verify", "close")
KINDS = {"opening": "open", "generating": "generate", "tools": "tool", "responding": "respond", "verifying": "verify"}


def everything(**config) -> Play:
    agent = Script(Generate(), [CallTool("look", "{}", "c0")], Respond(), Finish())
    return Play(agent, tools=["look"], hooks=ALL, config=config)


def wait(step, play) -> float:
    """Seconds until a rollout that sends nothing is due."""
    assert (step.sends, step.final) == ([], None)
    assert step.due == play.state.resume
    return step.due - play._machine().context.now


@pytest.mark.parametrize("phase", KINDS)
def test_a_call_that_met_an_outage_is_sent_again_after_a_wait(phase):
    # Given a rollout whose call met an outage
    play = everything().to(phase)
    step = play.go(failed("unavailable"))
    # Then nothing is sent for about a second
    assert 0.5 < wait(step, play) <= 1.3
    assert records(step)[0]["fault"]["kind"] == "unavailable"
    # and then the same call is
    again = play.due()
    assert (only(again).kind, only(again).step) == (KINDS[phase], play.live.version)
    # and the rollout goes on as if nothing had been
    play.go(friendly(only(again)))
    assert play.state.tries == 0
    assert play.state.status != "failed"


def test_waits_double_and_are_spread_and_have_a_bound():
    play = Play(Script(Generate()), config={"infra_retries": 20})
    play.go()
    spread = []
    for wanted in (1, 2, 4, 8, 16, 30, 30, 30):
        seconds = wait(play.go(failed("model_unavailable")), play)
        assert wanted * (1 - retry_budget.SPREAD) - 0.5 <= seconds <= wanted * (1 + retry_budget.SPREAD)
        spread.append(seconds / wanted)
        play.due()
    assert len({round(part, 3) for part in spread}) > 4


@pytest.mark.parametrize(
    ("kind", "config", "sent"),
    [
        ("model_unavailable", {}, 9), ("timeout", {"infra_retries": 2}, 3), ("model_unavailable", {"infra_retries": 0}, 1),
        ("model", {}, 1), ("model", {"data_retries": 2}, 3), ("poison", {"data_retries": 9}, 1),
    ],
)  # fmt: skip
def test_each_budget_is_finite_and_the_end_says_how_often_it_was_tried(kind, config, sent):
    play = Play(Script(Generate()), config=config)
    count = 0
    step = play.go()
    while not step.final:
        count += len(step.sends)
        step = play.go(failed(kind)) if step.sends else play.due()
    assert count == sent
    header = record(step)
    times = f" (sent {sent} times)" if sent > 1 else ""
    assert header["error"] == {"kind": kind, "message": f"{kind} happened{times}"}
    assert (header["status"], header["reward"]) == ("failed", None)


def test_the_budgets_are_of_the_whole_rollout_and_do_not_mix():
    # Given one try for outages, and two for other faults
    play = Play(Script(Generate(), Generate()), config={"infra_retries": 1, "data_retries": 2})
    play.go()
    # When faults of both kinds come, with an answer between them
    for answer in (failed("model"), failed("model_unavailable"), said(), failed("model")):
        step = play.go(answer)
        assert only(step if step.sends else play.due()).kind == "generate"
    # Then the next one of the kind that is spent is the last
    assert record(play.go(failed("model_unavailable")))["error"]["kind"] == "model_unavailable"


def test_a_tool_that_timed_out_is_the_environments_fault():
    play = Play(Script([CallTool("look", "{}")]), tools=["look"])
    play.go()
    assert record(play.go(failed("timeout")))["error"]["kind"] == "timeout"


def test_tools_of_a_turn_that_were_answered_are_not_sent_again():
    # Given three looks beside each other, of which one and then another meets an outage
    agent = Script([CallTool("look", f'{{"n":{n}}}', f"c{n}") for n in range(3)], Finish())
    play = Play(agent, tools=[spec("look", read_only=True)])
    play.go()
    play.go(result("a", 0), failed("unavailable", 1), failed("unavailable", 2))
    again = play.due()
    assert [call.arguments for _, call in calls(again)] == ['{"n":1}', '{"n":2}']
    assert [call.n for _, call in calls(again)] == [0, 1]
    play.go(failed("unavailable", 0), result("c", 1))
    assert [call.arguments for _, call in calls(play.due())] == ['{"n":1}']
    # When the last is answered
    step = play.go(result("b"))
    # Then the results stand in order, and it cost two tries
    assert [message["content"] for message in messages(play)[1:]] == ["a", "b", "c"]
    assert only(step).kind == "verify"
    assert (play.state.infra, play.state.tool_calls) == (2, 3)


def test_the_state_of_a_tool_that_was_answered_is_kept_over_a_wait():
    play = Play(Script([CallTool("act", "{}", "a"), CallTool("act", "{}", "b")]), tools=["act"], hooks=("open", "verify"))
    play.go()
    play.go(opened({"n": 0}))
    play.go(result("1", state={"n": 1}))
    play.go(failed("unavailable"))
    assert only(play.due()).state == b"\x81\xa1n\x01"


def test_a_tool_that_must_not_be_repeated_is_never_sent_again():
    play = Play(Script([CallTool("pay", "{}")]), tools=[spec("pay", once=True)], config={"data_retries": 5})
    play.go()
    assert record(play.go(failed("unavailable")))["error"] == {"kind": "unavailable", "message": "unavailable happened"}


def test_nothing_is_done_before_it_is_time():
    play = Play(Script(Generate()))
    step = play.go()
    assert play.due() is None
    assert play.due(OVERDUE - 60) is None
    assert step.due == pytest.approx(play._machine().context.now + OVERDUE, abs=5)
    assert play.due(OVERDUE).drop


def test_calls_that_nobody_answers_in_an_hour_are_sent_again_as_often_as_the_budget_says():
    play = Play(Script(Generate()), config={"infra_retries": 2})
    play.go()
    for _ in range(2):
        given_up = play.due(OVERDUE)
        assert given_up.drop and not given_up.sends
        assert only(play.due()).kind == "generate"
    error = record(play.due(OVERDUE))["error"]
    assert error["kind"] == "unavailable"
    assert error["message"].endswith("(sent 3 times)")


def test_a_tool_that_must_not_be_repeated_is_not_sent_again_although_it_is_overdue():
    play = Play(Script([CallTool("pay", "{}")]), tools=[spec("pay", once=True)])
    play.go()
    assert record(play.due(OVERDUE))["error"]["kind"] == "unavailable"


def test_a_rollout_that_waits_can_be_cancelled():
    play = Play(Script(Generate()))
    play.go()
    play.go(failed("model_unavailable"))
    assert record(play.abandon(Fault("cancelled", "x"), "cancelled"))["status"] == "cancelled"


# Rewards that are waited for.


def test_a_verifier_whose_process_was_killed_from_outside_is_tried_again():
    play = Play(Script(Finish()), hooks=("verify", "close")).to("verifying")
    step = play.go(failed("interrupted"))
    assert not step.sends and not step.final
    play.due()
    assert play.live.state.verify == 1


@pytest.mark.parametrize("kind", ["verifier", "killed", "memory", "timeout", "environment", "task", "poison"])
def test_a_verifiers_fault_fails_no_rollout_and_gives_no_zero(kind):
    play = Play(Script(Finish()), hooks=("verify", "close")).to("verifying")
    step = play.go(failed(kind))
    assert only(step).kind == "close"
    header = record(play.go(reply()))
    assert (header["status"], header["reward"], header["error"]) == ("completed", None, None)
    assert header["no_reward"] == f"{kind}: {kind} happened"


def test_a_verifier_is_tried_again_as_often_as_its_own_budget_says():
    # Given a rollout that has spent its budget, and was truncated
    play = Play(Script(*[Generate()] * 3), config={"infra_retries": 1, "max_turns": 1})
    play.go()
    play.go(failed("model_unavailable"))
    play.due()
    step = play.go(said())
    # When no verification comes to an end
    sent, generated, waited = 0, 1, 0.0
    while not step.final:
        sent += len(step.sends)
        generated += sum(call.kind == "generate" for _, call in calls(step))
        if step.sends:
            step = play.go(failed("unavailable"))
        else:
            waited += wait(step, play)
            step = play.due()
    # Then it was tried ten times more, in about three minutes, and no model was called for it
    assert (sent, generated) == (11, 1)
    assert 0.75 * 181 - 5 < waited < 1.25 * 181
    header = record(step)
    assert (header["status"], header["stop"], header["reward"]) == ("truncated", "max_turns", None)
    assert header["no_reward"] == "unavailable: unavailable happened (sent 11 times)"


def test_a_verifier_that_comes_back_gives_its_reward():
    play = Play(Script(Finish()), config={"data_retries": 1})
    play.go()
    for kind in ("unavailable", "verifier"):
        play.go(failed(kind))
        assert only(play.due()).kind == "verify"
    header = record(play.go(scored(0.5)))
    assert (header["reward"], header["no_reward"], header["status"]) == (0.5, None, "completed")


def test_an_environment_without_a_verifier_says_why_there_is_no_reward():
    play = Play(Script(Finish()), hooks=())
    header = record(play.go())
    assert (header["reward"], header["no_reward"]) == (None, "the environment has no verifier")


def test_a_verifier_that_nobody_serves_leaves_the_reward_out():
    play = Play(Script(Finish()), config={"verify_retries": 0}).to("verifying")
    header = record(play.due(OVERDUE))
    assert (header["status"], header["reward"]) == ("completed", None)
    assert header["no_reward"].startswith("unavailable: ")
