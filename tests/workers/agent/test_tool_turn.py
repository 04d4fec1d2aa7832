"""The tool calls of one turn: what runs beside what, in which order results stand, and whose fault is whose."""

from __future__ import annotations

import pytest
from gymq_workers.agent.tool_agent import ToolAgent
from gymq_workers.agent.tool_turn import MAX_PARALLEL_TOOLS

from gymq.api.agent import CallTool, Finish
from tests.support.play import Play, Script, calls, failed, messages, only, opened, record, reply, result, said, spec

TOOLS = [spec("look", read_only=True), spec("act"), spec("run", isolated=True)]


def play(*tools: str, hooks=("verify",)) -> tuple[Play, list]:
    """A rollout whose model has asked for these tools, and what is sent for them first."""
    one = Play(ToolAgent(), tools=TOOLS, hooks=hooks)
    step = one.go()
    if "open" in hooks:
        one.go(opened({"n": 0}))
    return one, calls(one.go(said(None, *tools))) if step else []


def results(one: Play) -> list[str]:
    return [message["content"] for message in messages(one) if message["role"] == "tool"]


@pytest.mark.parametrize(
    ("turn", "batches"),
    [
        ("look", ["look"]),
        ("act act", ["act", "act"]),
        ("look look look", ["look look look"]),
        ("look look act look look", ["look look", "act", "look look"]),
        ("act look act", ["act", "look", "act"]),
        ("look run look", ["look", "run", "look"]),
    ],
)
def test_neighbours_that_only_read_run_together_and_all_others_alone_in_order(turn, batches):
    # Given a turn of calls
    tools = turn.split()
    one, sent = play(*tools)
    # When each batch is answered in turn, then the next is sent
    for batch in batches:
        assert [call.name for _, call in sent] == batch.split()
        assert [call.n for _, call in sent] == list(range(len(sent)))
        done = len(results(one))
        sent = calls(one.go(*[result(f"{done + n}", n) for n in range(len(sent))]))
    # and the model is asked when all are done, with the results in the calls' order
    assert [call.kind for _, call in sent] == ["generate"]
    assert results(one) == [str(n) for n in range(len(tools))]
    assert [m["tool_call_id"] for m in messages(one) if m["role"] == "tool"] == [f"c{n}" for n in range(len(tools))]
    assert one.state.tool_calls == len(tools)


def test_an_unknown_tool_is_answered_in_its_place_and_the_others_run():
    # Given a turn with tools that do not exist at its beginning, in the middle and at its end
    one, sent = play("fly", "look", "swim", "look", "verify")
    assert [(call.n, call.name) for _, call in sent] == [(0, "look"), (1, "look")]
    # When the others are answered
    step = one.go(result("first", 0), result("second", 1))
    # Then each result stands where its call stood
    assert only(step).kind == "generate"
    said_to_model = results(one)
    assert said_to_model[1] == "first" and said_to_model[3] == "second"
    for place, name in ((0, "fly"), (2, "swim"), (4, "verify")):
        assert said_to_model[place] == f"Error: there is no tool '{name}'. Tools: act, look, run."


def test_a_turn_of_unknown_tools_only_goes_back_to_the_model_at_once():
    one, sent = play("fly", "swim")
    assert [call.kind for _, call in sent] == ["generate"]
    assert len(results(one)) == 2
    assert one.state.running == []


def test_an_unknown_tool_between_writing_ones_keeps_its_place():
    one, sent = play("act", "fly", "act")
    assert [call.name for _, call in sent] == ["act"]
    assert [call.name for _, call in calls(one.go(result("1")))] == ["act"]
    one.go(result("2"))
    assert [text[:5] for text in results(one)] == ["1", "Error", "2"]


def test_a_tool_that_was_not_declared_cannot_be_called():
    one = Play(ToolAgent(), tools=TOOLS, hooks=("open",))
    one.go()
    one.go(opened(tools=[spec("look").schema, spec("elsewhere").schema]))
    (call,) = calls(one.go(said(None, "act", "elsewhere", "look")))
    assert call[1].name == "look"
    one.go(result("seen"))
    assert [text[:25] for text in results(one)[:2]] == ["Error: there is no tool '"] * 2
    assert results(one)[0].endswith("Tools: look.")


def test_arguments_travel_as_the_model_wrote_them():
    one = Play(Script([CallTool("act", '{oops "ü"')]), tools=TOOLS)
    assert only(one.go()).arguments == '{oops "ü"'


def test_a_writing_tools_state_is_what_the_next_one_gets():
    one, sent = play("act", "act", hooks=("open", "verify"))
    assert sent[0][1].state == b"\x81\xa1n\x00"
    assert only(one.go(result("1", state={"n": 1}))).state == b"\x81\xa1n\x01"


def test_a_state_that_a_reading_tool_changed_is_not_kept():
    one, _ = play("look", "act", hooks=("open", "verify"))
    assert only(one.go(result("1", state={"n": 9}))).state == b"\x81\xa1n\x00"


def test_content_parts_reach_the_model_as_they_are():
    one, _ = play("look")
    parts = [{"type": "image_url", "image_url": {"url": "data:"}}]
    one.go(result(parts))
    assert results(one) == [parts]


@pytest.mark.parametrize("kind", ["timeout", "killed", "memory"])
def test_an_isolated_tool_at_its_limits_is_told_to_the_model(kind):
    one, _ = play("run")
    assert only(one.go(failed(kind))).kind == "generate"
    assert results(one) == [f"Error: {kind} happened"]


@pytest.mark.parametrize(("tool", "kind"), [("act", "timeout"), ("act", "memory"), ("run", "environment"), ("run", "poison")])
def test_other_faults_of_tools_fail_the_rollout_and_are_not_told_to_the_model(tool, kind):
    one, _ = play(tool)
    step = one.go(failed(kind))
    assert (record(step)["status"], record(step)["error"]["kind"]) == ("failed", kind)
    assert results(one) == []


def test_results_before_a_fault_are_kept_and_the_rest_of_the_turn_does_not_run():
    # Given two looks beside each other, and an act after them
    one, _ = play("look", "look", "act", hooks=("open", "close"))
    # When the second look fails
    step = one.go(result("first", 0), failed("environment", 1))
    # Then the first result stands, and nothing but the close is sent
    assert results(one) == ["first"]
    assert only(step).kind == "close"
    assert record(one.go(reply()))["status"] == "failed"


def test_a_turn_of_thousands_of_calls_is_sent_in_portions():
    one, sent = play(*["look"] * (MAX_PARALLEL_TOOLS + 5))
    assert len(sent) == MAX_PARALLEL_TOOLS
    sent = calls(one.go(*[result("x", n) for n in range(MAX_PARALLEL_TOOLS)]))
    assert [call.name for _, call in sent] == ["look"] * 5
    one.go(*[result("y", n) for n in range(5)])
    assert results(one) == ["x"] * MAX_PARALLEL_TOOLS + ["y"] * 5


def test_tools_that_an_agent_calls_in_plain_text_are_observed_as_it_wants():
    one = Play(Script([CallTool("act", "{}")], Finish()), tools=TOOLS)
    one.go()
    one.go(result("done"))
    assert messages(one)[-1] == {"role": "user", "content": "done"}
