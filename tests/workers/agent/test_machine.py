"""The state machine: what follows what, and that a rollout ends with a status whatever happens."""

from __future__ import annotations

import pytest
from gymq_workers.agent.agent_guard import EXTENSIONS
from gymq_workers.agent.tool_agent import ToolAgent

from gymq.api.agent import CallTool, Extend, Finish, Generate, Respond
from gymq.errors import Fault
from gymq.wire.message import Message, encode_message
from tests.support.play import (
    Play,
    Script,
    calls,
    failed,
    messages,
    only,
    opened,
    record,
    records,
    reply,
    responded,
    result,
    said,
    scored,
)

ALL = ("open", "respond", "verify", "close")


def test_a_rollout_of_every_phase_in_turn():
    # Given an environment that has everything
    play = Play(ToolAgent(), tools=["look"], hooks=ALL)
    # When it is played
    steps = [
        play.go(),
        play.go(opened({"n": 1}, [encode_message(Message("system", "rules"))])),
        play.go(said(None, "look", finish="tool_calls")),
        play.go(result("seen", state={"n": 2})),
        play.go(said("well?")),
        play.go(responded("go on")),
        play.go(said("bye")),
        play.go(responded(done=True)),
        play.go(scored(0.5, rewards={"a": 0.5}, metrics={"m": 2.0})),
        play.go(reply()),
    ]
    # Then it was one call at a time, of each kind, to the right mailbox
    kinds = [[(mailbox, call.kind) for mailbox, call in calls(step)] for step in steps]
    model, world = "model:model", "resource:world"
    assert kinds == [
        [(world, "open")], [(model, "generate")], [(world, "tool")], [(model, "generate")], [(world, "respond")],
        [(model, "generate")], [(world, "respond")], [(world, "verify")], [(world, "close")], [],
    ]  # fmt: skip
    # with ids that name rollout, step and number
    assert [call.id for step in steps for _, call in calls(step)] == [f"r.7.1:{n}:0" for n in range(1, 10)]
    # and the conversation stands in order
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [message["role"] for message in messages(play)] == roles
    # and the end says how it was
    end = steps[-1].final
    assert (end.run, end.row, end.samples, end.status) == ("r", 7, 1, "completed")
    header = record(steps[-1])
    assert (header["reward"], header["rewards"], header["metrics"]) == (0.5, {"a": 0.5}, {"m": 2.0})
    assert (header["turns"], header["tool_calls"], header["error"], header["stop"]) == (3, 1, None, None)
    assert header["usage"] == {"input_tokens": 15, "output_tokens": 9, "cached_tokens": 6, "reasoning_tokens": 3}
    kinds = ["open", "generate", "tool", "generate", "respond", "generate", "respond", "verify", "close"]
    assert [call["kind"] for call in records(*steps)] == kinds
    assert [call["call"] for call in records(*steps)] == [f"{n}.0" for n in range(1, 10)]


def test_an_environment_that_has_nothing_ends_without_a_reward():
    play = Play(ToolAgent(), hooks=())
    assert only(play.go()).kind == "generate"
    end = play.go(said())
    assert (end.final.status, record(end)["reward"]) == ("completed", None)


def test_a_group_is_told_its_size_at_each_end():
    play = Play(ToolAgent(), hooks=(), config={"samples": 8})
    play.go()
    final = play.go(said()).final
    assert (final.run, final.row, final.samples) == ("r", 7, 8)


# Faults.

KINDS = {"opening": "open", "generating": "generate", "tools": "tool", "responding": "respond"}


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("phase", KINDS)
def test_a_fault_in_any_phase_fails_the_rollout_and_says_why(phase, close):
    # Given a rollout that waits for something
    agent = Script(Generate(), [CallTool("look", "{}", "c0")], Respond(), Finish())
    play = Play(agent, tools=["look"], hooks=ALL if close else ALL[:3]).to(phase)
    # When that ends with a fault
    step = play.go(failed("environment"))
    call = records(step)[0]
    assert (call["kind"], call["fault"]) == (KINDS[phase], {"kind": "environment", "message": "environment happened"})
    # Then what was opened is closed, and the rollout is failed and has no reward
    if close and phase != "opening":
        assert only(step).kind == "close"
        step = play.go(reply())
    header = record(step)
    assert (header["status"], header["reward"]) == ("failed", None)
    assert header["error"] == {"kind": "environment", "message": "environment happened"}
    assert messages(play)[0] == {"role": "user", "content": "go"}


def test_a_fault_while_closing_changes_nothing_of_what_was_reached():
    play = Play(Script(Finish()), hooks=("verify", "close")).to("closing")
    end = play.go(failed("timeout"))
    assert (record(end)["status"], record(end)["reward"], record(end)["error"]) == ("completed", 1.0, None)
    assert records(end)[0]["fault"]["kind"] == "timeout"


def test_a_prompt_that_does_not_fit_truncates_the_rollout_which_is_scored():
    play = Play(Script(Generate()))
    play.go()
    step = play.go(failed("context_overflow"))
    assert only(step).kind == "verify"
    header = record(play.go(scored(0.25)))
    assert (header["status"], header["stop"], header["reward"], header["error"]) == (
        "truncated", "context_overflow", 0.25, None,
    )  # fmt: skip


def test_a_verdict_without_a_number_is_no_zero():
    play = Play(Script(Finish()))
    play.go()
    header = record(play.go(scored(None, reason="no key")))
    assert (header["status"], header["reward"], header["no_reward"]) == ("completed", None, "no key")


@pytest.mark.parametrize("phase", ["new", *KINDS, "verifying", "closing"])
def test_a_rollout_can_be_abandoned_in_any_phase(phase):
    # Given a rollout in some phase
    play = Play(Script(Generate(), [CallTool("look", "{}")], Respond(), Finish()), tools=["look"], hooks=ALL)
    if phase != "new":
        play.to(phase)
    # When it is cancelled
    step = play.abandon(Fault("cancelled", "the run was cancelled"), "cancelled")
    # Then it ends at once, sends nothing, and has its messages
    assert step.sends == []
    header = record(step)
    assert (header["status"], header["error"]["kind"]) == ("cancelled", "cancelled")
    assert header["started_at"] > 0
    assert messages(play)[0] == {"role": "user", "content": "go"}
    assert step.messages == (play.live.messages if phase in ("new", "opening") else [])


CANCELLED = Fault("cancelled", "the run was cancelled")


@pytest.mark.parametrize("phase", ["generating", "tools", "responding", "verifying"])
def test_what_was_opened_is_closed_before_a_cancelled_rollout_ends(phase):
    play = Play(Script(Generate(), [CallTool("look", "{}")], Respond(), Finish()), tools=["look"], hooks=ALL).to(phase)
    assert only(play.cancel(CANCELLED)).kind == "close"
    header = record(play.go(failed("timeout")))  # though nobody can close it
    assert (header["status"], header["error"]["kind"], header["reward"]) == ("cancelled", "cancelled", None)


@pytest.mark.parametrize(("phase", "hooks"), [("new", "all"), ("opening", "all"), ("generating", "none")])
def test_a_cancelled_rollout_that_has_nothing_open_ends_at_once(phase, hooks):
    play = Play(Script(Generate()), hooks=ALL if hooks == "all" else ())
    if phase != "new":
        play.to(phase)
    step = play.cancel(CANCELLED)
    assert (record(step)["status"], step.sends) == ("cancelled", [])


def test_a_second_cancellation_does_not_wait_for_the_close():
    play = Play(Script(Generate()), hooks=ALL).to("generating")
    play.cancel(CANCELLED)
    assert record(play.cancel(CANCELLED))["status"] == "cancelled"


def test_a_rollout_that_is_scored_and_closing_ends_as_what_it_was():
    play = Play(Script(Finish()), hooks=ALL).to("closing")
    header = record(play.cancel(CANCELLED))
    assert (header["status"], header["reward"], header["error"]) == ("completed", 1.0, None)


# The agent.


@pytest.mark.parametrize(
    "nonsense",
    [
        ValueError("no\nidea"),
        None,
        "generate",
        [],
        ["look"],
        [CallTool("look", {"n": 1})],
        [CallTool(None, "{}")],
        [Generate()],
        Generate,
        Finish(truncated=True, reason=7),
        Extend(None),
        Extend(["hi"]),
        Extend([Message("user", "\ud800")]),
        Extend([Message("user", [{"type": object()}])]),
    ],
    ids=lambda nonsense: type(nonsense).__name__,
)
@pytest.mark.parametrize("first", [True, False])
def test_an_agent_that_raises_or_gives_nonsense_fails_its_rollout_in_one_line(nonsense, first):
    # Given an agent that does so at once, or after the model's answer
    play = Play(Script(*([] if first else [Generate()]), nonsense), tools=["look"], hooks=ALL)
    play.go()
    # When it acts
    step = play.go(opened())
    if not first:
        step = play.go(said())
    # Then the environment is closed, and the rollout has failed by the agent
    assert only(step).kind == "close"
    error = record(play.go(reply()))["error"]
    assert error["kind"] == "agent"
    assert error["message"] and "\n" not in error["message"]


@pytest.mark.parametrize("unknown", [True, False])
def test_an_agent_that_cannot_observe_a_result_fails_its_rollout(unknown):
    class Blind(Script):
        def observe(self, call, content):
            raise KeyError("eyes")

    play = Play(Blind([CallTool("nothing" if unknown else "look", "{}")]), tools=["look"])
    step = play.go()
    if not unknown:
        step = play.go(result("ok"))
    assert record(step)["error"] == {"kind": "agent", "message": "KeyError: 'eyes'"}


def test_turns_are_bounded_and_what_was_reached_is_scored():
    play = Play(Script(*[Generate()] * 9), config={"max_turns": 2})
    play.go()
    play.go(said())
    step = play.go(said())
    assert only(step).kind == "verify"
    header = record(play.go(scored()))
    assert (header["status"], header["stop"], header["turns"]) == ("truncated", "max_turns", 2)


def test_an_agent_may_add_messages_and_is_asked_again():
    agent = Script(Extend([Message("user", "first"), Message("user", "second")]), Generate())
    play = Play(agent)
    step = play.go()
    assert [message["content"] for message in messages(play)] == ["go", "first", "second"]
    assert only(step).length == 3
    assert agent.lengths == [1, 3]


def test_an_agent_that_only_adds_messages_is_stopped():
    play = Play(Script(*[Extend([Message("user", "more")])] * 99))
    step = play.go()
    assert record(step)["error"]["kind"] == "agent"
    assert len(play.agent.lengths) == EXTENSIONS


def test_a_response_that_says_nothing_fails_the_rollout():
    play = Play(Script(Respond()), hooks=ALL).to("responding")
    step = play.go(responded())
    assert only(step).kind == "close"
    assert record(play.go(reply()))["error"]["kind"] == "environment"


def test_the_last_words_of_the_environment_are_kept():
    play = Play(Script(Respond()), hooks=("respond", "verify"))
    play.go()
    step = play.go(responded("thank you", done=True))
    assert only(step).kind == "verify"
    assert messages(play)[-1] == {"role": "user", "content": "thank you"}


def test_a_state_that_was_responded_is_what_the_verifier_gets():
    play = Play(Script(Respond()), hooks=("respond", "verify"))
    play.go()
    call = only(play.go(responded("x", done=True, state={"n": 5})))
    assert (call.has_state, call.state) == (True, b"\x81\xa1n\x05")


def test_a_fault_right_after_opening_closes_what_was_opened():
    play = Play(Script(ValueError("at once")), hooks=ALL)
    play.go()
    assert only(play.go(opened())).kind == "close"


@pytest.mark.parametrize(
    "tools", [{"look": 1}, ["look"], [{"name": "look"}], [{"function": {}}], 5, [{"function": {"name": []}}]]
)
def test_tools_that_are_none_fail_the_rollout_by_the_environment(tools):
    play = Play(ToolAgent(), tools=["look"], hooks=ALL)
    play.go()
    play.go(opened(tools=tools))
    assert play.state.fault.kind == "environment"
    assert record(play.go(reply()))["status"] == "failed"
