"""The limits of a rollout: each ends it truncated, with its turns kept, and it is scored."""

from __future__ import annotations

import pytest
from gymq_workers.agent.tool_agent import ToolAgent

from gymq.api.agent import CallTool, Extend, Finish, Generate, Respond
from gymq.wire.calls import Reply
from gymq.wire.message import Message
from tests.support.play import (
    Play,
    Script,
    calls,
    failed,
    messages,
    only,
    opened,
    record,
    reply,
    responded,
    result,
    said,
    scored,
    spec,
)

ALL = ("open", "respond", "verify", "close")


def truncated(play: Play, step, limit: str) -> None:
    """A rollout that goes on to its verifier and ends truncated by a limit."""
    assert only(step).kind == "verify"
    header = record(play.go(scored(0.5)))
    assert (header["status"], header["stop"], header["reward"], header["error"]) == ("truncated", limit, 0.5, None)


def took(seconds: float, value: Reply, waited: float = 0.0) -> Reply:
    value.finished, value.waited = value.started + seconds, waited
    return value


def answered(play: Play) -> None:
    """Every tool call has its result: servers refuse anything else."""
    open_calls = []
    for message in messages(play):
        if message["role"] == "assistant":
            assert not open_calls
            open_calls = [call["id"] for call in message.get("tool_calls", [])]
        elif message["role"] == "tool":
            assert message["tool_call_id"] == open_calls.pop(0)
    assert not open_calls


def test_without_limits_there_are_none():
    play = Play(Script(*[Generate()] * 29, Finish()))
    play.go()
    for _ in range(29):
        step = play.go(took(1e6, said()))
    assert only(step).kind == "verify"
    assert play.state.status == "completed"


def test_tokens_are_bounded_before_the_next_answer():
    # An answer here is 5 tokens in and 3 out.
    play = Play(Script(*[Generate()] * 9), config={"max_rollout_tokens": 16})
    play.go()
    assert only(play.go(said())).kind == "generate"
    truncated(play, play.go(said()), "max_rollout_tokens")


def test_tokens_are_bounded_before_tools_and_their_calls_are_answered():
    play = Play(ToolAgent(), tools=["look"], config={"max_rollout_tokens": 8})
    play.go()
    step = play.go(said(None, "look", "look", finish="tool_calls"))
    answered(play)
    assert "max_rollout_tokens" in messages(play)[-1]["content"]
    truncated(play, step, "max_rollout_tokens")


def test_a_conversation_that_is_over_is_not_truncated_by_what_it_took():
    play = Play(Script(Generate(), Finish()), config={"max_rollout_tokens": 1, "max_working_seconds": 0.5})
    play.go()
    play.go(said())
    assert play.state.status == "completed"


def test_working_time_is_what_calls_took_without_what_they_waited():
    play = Play(Script(*[Generate()] * 9), config={"max_working_seconds": 5})
    play.go()
    assert only(play.go(took(30, said(), waited=27))).kind == "generate"
    assert play.go(took(1, failed("model_unavailable"))).sends == []
    play.due()
    truncated(play, play.go(took(1.5, said())), "max_working_seconds")


def test_working_time_is_that_of_all_kinds_of_calls():
    play = Play(Script([CallTool("look", "{}")], Respond(), Generate()), tools=["look"], hooks=ALL[:3],
                config={"max_working_seconds": 2.5})  # fmt: skip
    play.go()
    play.go(took(1, opened()))
    play.go(took(1, result("x")))
    truncated(play, play.go(took(1, responded("more"))), "max_working_seconds")


@pytest.mark.parametrize("reading", [True, False])
def test_tool_calls_beyond_the_limit_are_answered_and_not_done(reading):
    # Given a limit of three, and an agent that wants a thousand at once
    play = Play(ToolAgent(), tools=[spec("look", read_only=reading)], config={"max_tool_calls": 3})
    play.go()
    step, sent = play.go(said(None, *["look"] * 1000, finish="tool_calls")), 0
    # When it is played
    while only_kind(step) == "tool":
        sent += len(step.sends)
        step = play.go(*[result("seen", n) for n in range(len(step.sends))])
    # Then three were done, the others are answered, and it is scored
    assert (sent, play.state.tool_calls) == (3, 3)
    answered(play)
    assert [m["content"] for m in messages(play) if m["role"] == "tool"][:4] == [
        "seen", "seen", "seen", "Error: the call was not done: the rollout has reached its limit max_tool_calls."
    ]  # fmt: skip
    truncated(play, step, "max_tool_calls")


def only_kind(step) -> str:
    (kind,) = {call.kind for _, call in calls(step)}
    return kind


def test_a_rollout_that_has_made_all_its_tool_calls_may_still_answer():
    play = Play(ToolAgent(), tools=["look"], config={"max_tool_calls": 1})
    play.go()
    play.go(said(None, "look", finish="tool_calls"))
    assert only(play.go(result("seen"))).kind == "generate"
    play.go(said("done"))
    assert play.state.status == "completed"


# Time.


def test_time_is_looked_at_before_the_next_call():
    play = Play(Script(*[Generate()] * 9), config={"max_seconds": 60})
    play.go()
    play.state.counted -= 61
    truncated(play, play.go(said()), "max_seconds")


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("phase", ["generating", "tools", "responding"])
def test_time_ends_what_is_pending_or_waits(phase, waiting):
    # Given a rollout that waits for a call, or to send it again
    agent = Script(Generate(), [CallTool("look", "{}", "c0"), CallTool("look", "{}", "c1")], Respond())
    if phase == "tools":
        agent = ToolAgent()
    play = Play(agent, tools=["look"], hooks=ALL[1:3] if phase == "responding" else ALL[2:3], config={"max_seconds": 60})
    step = play.go()
    if phase == "tools":
        step = play.go(said(None, "look", "look", finish="tool_calls"))
    while play.state.phase != phase:
        step = play.go(said()) if play.state.phase == "generating" else play.go(result("seen"))
    if waiting:
        step = play.go(failed("unavailable"))
        assert step.due == play.state.resume
    else:
        assert step.due == pytest.approx(play.state.started_at + 60)
        assert play.due(55) is None
    # When its time is over
    play.state.resume = play.state.resume and play.state.started_at + 70
    step = play.due(61)
    # Then what is pending is given up, all tool calls are answered, and it is scored
    assert step.drop
    if phase == "tools":
        answered(play)
    truncated(play, step, "max_seconds")


def test_a_wait_that_is_longer_than_the_time_left_ends_with_the_time():
    play = Play(Script(Generate()), config={"max_seconds": 0.5})
    play.go()
    step = play.go(failed("model_unavailable"))
    assert step.due == pytest.approx(play.state.started_at + 0.5)
    assert step.due < play.state.resume


def test_what_was_never_opened_is_not_scored():
    play = Play(Script(Generate()), hooks=ALL, config={"max_seconds": 60})
    play.go()
    header = record(play.due(61))
    assert (header["status"], header["stop"], header["reward"]) == ("truncated", "max_seconds", None)
    assert header["no_reward"] == "timeout: the environment was not opened in time"


@pytest.mark.parametrize("phase", ["verifying", "closing"])
def test_scoring_has_all_the_time_that_it_needs(phase):
    play = Play(Script(Finish()), hooks=("verify", "close"), config={"max_seconds": 60}).to(phase)
    assert play.due(600) is None
    play.go(reply() if phase == "closing" else scored())


def test_a_model_is_told_how_long_it_may_take():
    play = Play(Script(Generate()), config={"call_timeout": 7.5})
    assert only(play.go()).timeout == 7.5


def test_limits_hold_for_agents_that_add_messages():
    play = Play(Script(Generate(), Extend([Message("user", "and?")]), Generate()), config={"max_rollout_tokens": 8})
    play.go()
    truncated(play, play.go(said()), "max_rollout_tokens")
