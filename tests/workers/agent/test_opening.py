"""The opening of a conversation: instructions of the environment come first, whatever the task holds."""

from __future__ import annotations

import pytest
from gymq_workers.agent.opening import opening_messages
from gymq_workers.agent.tool_agent import ToolAgent

from gymq.wire.message import Message, decode_message, encode_message
from tests.support.play import Play, calls, failed, messages, opened, record, said

RULES, BRIEF = Message("system", "rules"), Message("system", "be brief")
GO, HINT = Message("user", "go"), Message("user", "a hint")
ANSWER = Message("assistant", "hm")
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def made(task: list[Message], given: list[Message]) -> list[Message]:
    encode = encode_message
    return [decode_message(each) for each in opening_messages([encode(m) for m in task], [encode(m) for m in given])]


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ([GO], [], [GO]),
        ([GO], [HINT], [GO, HINT]),
        ([GO], [RULES], [RULES, GO]),
        ([GO], [RULES, HINT], [RULES, GO, HINT]),
        ([GO], [HINT, RULES], [GO, HINT, RULES]),
        ([GO, ANSWER], [RULES, BRIEF, HINT, ANSWER], [RULES, BRIEF, GO, ANSWER, HINT, ANSWER]),
        ([GO], [Message("developer", "rules")], [Message("developer", "rules"), GO]),
        ([], [RULES, HINT], [RULES, HINT]),
        ([BRIEF, GO], [HINT], [BRIEF, GO, HINT]),
        ([BRIEF, GO], [RULES], [Message("system", "rules\n\nbe brief"), GO]),
        ([BRIEF, GO], [RULES, BRIEF], [RULES, Message("system", "be brief\n\nbe brief"), GO]),
        ([Message("system", [IMAGE]), GO], [RULES], [Message("system", [{"type": "text", "text": "rules"}, IMAGE]), GO]),
        ([BRIEF, GO], [Message("system")], [BRIEF, GO]),
    ],
)
def test_instructions_stand_first_and_become_one_with_those_of_the_task(task, given, expected):
    assert made(task, given) == expected


def test_a_conversation_begins_when_it_is_opened_and_the_model_gets_it_whole():
    play = Play(ToolAgent(), hooks=("open",))
    assert play.go().messages == []
    step = play.go(opened(None, [encode_message(message) for message in (RULES, HINT)]))
    ((_, call),) = calls(step)
    assert (call.kind, call.seen, call.length) == ("generate", 0, 3)
    assert call.messages == step.messages == [encode_message(message) for message in (RULES, GO, HINT)]
    assert [message["role"] for message in messages(play)] == ["system", "user", "user"]
    play.go(said("done"))
    assert len(play.live.messages) == 4


@pytest.mark.parametrize("how", ["failed", "late"])
def test_what_was_never_opened_has_the_messages_of_its_task(how):
    play = Play(ToolAgent(), hooks=("open", "close"), config={"max_seconds": 60})
    play.go()
    step = play.go(failed("environment")) if how == "failed" else play.due(61)
    assert record(step)["status"] == ("failed" if how == "failed" else "truncated")
    assert step.messages == [encode_message(GO)]
