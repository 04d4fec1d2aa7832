"""Messages: encoded once, decoded only when somebody looks."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymq.wire.message import Conversation, Function, Message, ToolCall, decode_message, encode_message, without_reasoning

TEXT = st.text(max_size=20)
PARTS = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": TEXT}), max_size=3)
CALLS = st.lists(st.builds(ToolCall, TEXT, st.builds(Function, TEXT, TEXT)), max_size=3)
MESSAGES = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.none() | TEXT | PARTS,
    st.none() | TEXT,
    CALLS,
    st.none() | TEXT,
    st.none() | TEXT,
)


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message):
    data = encode_message(message)
    assert decode_message(data) == message
    assert encode_message(decode_message(data)) == data


@given(MESSAGES)
def test_reasoning_is_dropped_and_nothing_else(message):
    data = without_reasoning(encode_message(message))
    assert decode_message(data) == msgspec.structs.replace(message, reasoning=None)
    assert "reasoning" not in json.loads(data)


@given(MESSAGES.filter(lambda message: message.reasoning is None))
def test_a_message_without_reasoning_comes_back_untouched(message):
    data = encode_message(message)
    assert without_reasoning(data) is data


def test_text_that_looks_like_reasoning_is_no_reasoning():
    data = encode_message(Message("user", 'say {"reasoning": "x"} or "reasoning":'))
    assert without_reasoning(data) is data


def test_a_message_is_what_chat_completions_expect():
    message = Message("assistant", tool_calls=[ToolCall("c", Function("look", "{}"))])
    assert json.loads(encode_message(message)) == {
        "role": "assistant",
        "tool_calls": [{"type": "function", "id": "c", "function": {"name": "look", "arguments": "{}"}}],
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("hi", "hi"),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text", "text": None}], ""),
    ],
)
def test_the_text_of_a_message_leaves_out_what_is_none(content, text):
    assert Message("user", content).text == text


def turns(count: int) -> list[bytes]:
    return [encode_message(Message("user" if n % 2 == 0 else "assistant", str(n))) for n in range(count)]


def test_a_conversation_decodes_only_what_is_looked_at():
    # Given a conversation whose other messages cannot be decoded
    conversation = Conversation([b"no JSON", *turns(3), b"no JSON"])
    # When one is looked at, then it is there; it is decoded once; and the length needs none
    assert conversation[2].text == "1"
    assert conversation[2] is conversation[2]
    assert len(conversation) == 5
    with pytest.raises(msgspec.DecodeError):
        _ = conversation.last


def test_a_conversation_grows_with_its_list():
    shared = turns(1)
    conversation = Conversation(shared)
    assert conversation.last.text == "0"
    shared += turns(3)[1:]
    assert (len(conversation), conversation.last.text, conversation[-3].text) == (3, "2", "0")


def test_a_conversation_is_a_sequence():
    conversation = Conversation(turns(4))
    assert [message.text for message in conversation] == ["0", "1", "2", "3"]
    assert [conversation[n].text for n in (0, 3, -1, -4)] == ["0", "3", "3", "0"]
    for wrong in (4, -5):
        with pytest.raises(IndexError):
            conversation[wrong]
    with pytest.raises(IndexError):
        _ = Conversation([]).last


def test_the_newest_message_of_a_role_is_found_without_the_older_ones():
    conversation = Conversation([b"no JSON", *turns(4)])
    assert conversation.last_of("assistant").text == "3"
    assert conversation.last_of("user").text == "2"
    assert Conversation(turns(2)).last_of("tool") is None
