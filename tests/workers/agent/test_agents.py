"""The agents that are installed: what they do after which message."""

from __future__ import annotations

import pytest
from gymq_workers.agent.react_agent import ReActAgent
from gymq_workers.agent.tool_agent import ToolAgent

from gymq.api.agent import CallTool, Extend, Finish, Generate, Respond, View
from gymq.wire.calls import decode_parameters
from gymq.wire.message import Conversation, Function, Message, ToolCall, encode_message
from tests.support.play import Play, messages, only, record, result, said, scored, spec

CALL = ToolCall("c", Function("look", '{"n": 1}'))


def view(*messages: Message, turns: int = 1, finish: str = "stop", responds: bool = False, tools=()) -> View:
    return View(Conversation([encode_message(message) for message in messages]), turns, finish, responds, list(tools))


USER = Message("user", "go")
TEXT = Message("assistant", "hello")
ASKS = Message("assistant", tool_calls=[CALL])


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (view(turns=0), Generate()),
        (view(USER, turns=0), Generate()),
        (view(Message("system", "rules"), turns=0), Generate()),
        (view(USER, TEXT), Finish()),
        (view(USER, TEXT, responds=True), Respond()),
        (view(USER, ASKS), [CallTool("look", '{"n": 1}', "c")]),
        (view(USER, ASKS, finish="tool_calls", responds=True), [CallTool("look", '{"n": 1}', "c")]),
        (view(USER, ASKS, Message("tool", "seen", tool_call_id="c")), Generate()),
        (view(USER, TEXT, finish="length"), Finish(True, "length")),
        (view(USER, ASKS, finish="length"), Finish(True, "length")),
        (view(USER, TEXT, finish="content_filter", responds=True), Finish(True, "content_filter")),
        (view(USER, TEXT, turns=0, finish=""), Generate()),
        (view(USER, ASKS, turns=0, finish=""), Generate()),
    ],
)
def test_the_tool_agent_decides_by_the_last_message(seen, action):
    assert ToolAgent().act(seen) == action


def react(text: str, **fields) -> object:
    agent = ReActAgent()
    rules = agent.act(view(USER, turns=0)).messages[0]
    return agent.act(view(USER, rules, Message("assistant", text), **fields))


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('I look.\nAction: look {"n": 1}', [CallTool("look", '{"n": 1}')]),
        ("Action: look", [CallTool("look", "{}")]),
        ("Action:  look  {}  ", [CallTool("look", "{}")]),
        ('Action: look {"n": 1}\nAction: look {"n": 2}', [CallTool("look", '{"n": 2}')]),
        ("Answer: 4", Finish()),
        ("the Action: look is not at a line's beginning", Finish()),
        ("", Finish()),
    ],
)
def test_the_react_agent_reads_its_actions_from_the_text(text, action):
    assert react(text) == action


def test_the_react_agent_does_not_run_what_was_cut_off():
    assert react("Action: look {}", finish="length") == Finish(True, "length")


def test_the_react_agent_tells_of_the_tools_once_and_by_itself():
    # Given a rollout of that agent
    play = Play(ReActAgent(), tools=[spec("look")])
    # When it begins
    call = only(play.go())
    # Then the tools stand in a message, not in the request
    assert '"name": "look"' in messages(play)[1]["content"]
    assert decode_parameters(call.parameters).request() == b"{}"
    # and a call is answered by an observation, without telling of the tools again
    play.go(said("Action: look {}"))
    assert only(play.go(result("a house"))).kind == "generate"
    assert messages(play)[-1] == {"role": "user", "content": "Observation: a house"}
    assert len(messages(play)) == 4
    # and what does not exist is told it so
    play.go(said("Action: fly {}"))
    assert messages(play)[-1]["content"] == "Observation: Error: there is no tool 'fly'. Tools: look."
    play.go(said("Answer: a house"))
    assert record(play.go(scored()))["turns"] == 3


def test_the_react_agent_asks_when_only_the_rules_stand_there():
    rules = ReActAgent().act(view(USER, turns=0))
    assert isinstance(rules, Extend)
    assert ReActAgent().act(view(USER, *rules.messages, turns=0)) == Generate()
