"""Calls in token ids: exact prompts over turns, messages read by the server, versions of each token."""

from __future__ import annotations

import struct

import pytest
from gymq_workers.model.openai import token_client
from gymq_workers.model.openai.backend import OpenAIBackend
from gymq_workers.model.tokens.chat_template import ChatTemplate

from bench.mock_tokens import END, OK, decode
from gymq.errors import CallError, UsageError
from gymq.wire.message import Message, decode_message
from tests.support.model_server import ask, servers
from tests.support.tokenizer import Bytes

TOOLS = b'{"tools":[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object"}}}]}'


def ids(packed: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(packed) // 4}i", packed))


@pytest.fixture
async def make(server, monkeypatch):
    """Makes started backends that speak to the mock server in token ids."""
    monkeypatch.setattr(token_client, "find_spec", lambda name: True)
    monkeypatch.setattr(token_client.TokenClient, "start", lambda self: self.use(ChatTemplate(Bytes())))
    monkeypatch.setattr("gymq_workers.model.openai.retry.FIRST_WAIT", 0.005)
    made = []

    async def start(model="mock", **options):
        one = OpenAIBackend(model, {"base_url": f"{server}/v1", "api": "generate", **options})
        await one.start()
        made.append(one)
        return one

    yield start
    for one in made:
        await one.stop()


async def test_the_prompt_of_a_turn_is_the_ids_of_the_last_one_and_of_what_is_new(make):
    one = await make()
    first = await one.generate(ask("Hello", rollout="r.0.0"))
    said = decode_message(first.message)
    assert said.content == f"ok {len(ids(first.tokens.prompt))}"
    output = ids(first.tokens.output)
    assert (output[0], output[-1]) == (OK, END)  # as it was sampled: tokenized again it would be two bytes
    second = await one.generate(ask("Hello", said, "And?", rollout="r.0.0"))
    assert second.tokens.prompt_start == len(ids(first.tokens.prompt)) + len(output)
    assert decode(ids(second.tokens.prompt)) == "\nuser:\nAnd?\nassistant:\n"
    # The server was sent just these: it counts them.
    sent = second.tokens.prompt_start + len(ids(second.tokens.prompt))
    assert decode_message(second.message).content == f"ok {sent}"
    assert (second.usage.input_tokens, second.usage.cached_tokens) == (sent, 3)


async def test_tool_calls_are_read_by_the_servers_own_parsers(make):
    one = await make()
    answer = await one.generate(ask("What is the weather in Rome?", body=TOOLS))
    message = decode_message(answer.message)
    assert (message.content, answer.finish) == (None, "tool_calls")
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [
        ("get_weather", '{"city":"Rome"}')
    ]
    result = Message("tool", "Sunny.", tool_call_id=message.tool_calls[0].id, name="get_weather")
    after = await one.generate(ask("What is the weather in Rome?", message, result, body=TOOLS))
    assert after.tokens.prompt_start == (len(answer.tokens.prompt) + len(answer.tokens.output)) // 4


async def test_logprobs_and_the_version_of_each_token_are_recorded(make):
    tokens = (await (await make()).generate(ask("Hello"))).tokens
    output = ids(tokens.output)
    assert struct.unpack(f"<{len(output)}f", tokens.logprobs) == tuple(-one / 8 for one in output)
    assert tokens.versions == [(0, 3), (len(output) // 2, 4)]


async def test_sampling_is_in_vllms_own_terms(make):
    one = await make()
    answer = await one.generate(ask("Hello", body=b'{"max_completion_tokens":1,"temperature":0.5,"user":"me"}'))
    assert (answer.finish, decode_message(answer.message).content, ids(answer.tokens.output)) == ("length", "ok", [OK])
    stopped = await one.generate(ask("Hello", body=b'{"stop":"END"}', rollout="r.1.0"))
    assert decode(ids(stopped.tokens.output)).endswith("END")
    assert "END" not in decode_message(stopped.message).content
    for body, words in [
        (b'{"top_a":1}', "no sampling field 'top_a'"),
        (b'{"response_format":{"type":"structural_tag"}}', "structural_tag"),
    ]:
        with pytest.raises(CallError, match=words) as caught:
            await one.generate(ask("Hello", body=body))
        assert caught.value.fault.kind == "model"
    image = Message("user", [{"type": "image_url", "image_url": {"url": "data:,"}}])
    with pytest.raises(CallError, match="sends text only"):
        await one.generate(ask(image))


async def test_a_conversation_that_moves_keeps_its_tokens(make):
    with servers((), ()) as urls:
        one = await make(base_url=",".join(urls))
        before = await one.generate(ask("Hello", rollout="r.0.0"))
        left = one._pool._holders["r.0.0"]
        one._pool.load[left] += 100
        after = await one.generate(ask("Hello", decode_message(before.message), "And?", rollout="r.0.0"))
    assert one._pool._holders["r.0.0"] == 1 - left
    assert after.tokens.prompt_start == (len(before.tokens.prompt) + len(before.tokens.output)) // 4


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("429", "model_unavailable"),
        ("close", "model_unavailable"),
        ("overflow", "context_overflow"),
        ("404", "model_access"),
        ("nochoices", "model"),
    ],
)
async def test_failures_are_those_of_the_other_forms(make, kind, fault):
    with pytest.raises(CallError) as caught:
        await (await make(f"mock-{kind}", retries=1)).generate(ask("Hello"))
    assert caught.value.fault.kind == fault


def test_options_that_make_no_sense_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="tokenizer needs api generate"):
        OpenAIBackend("m", {"base_url": "http://h/v1", "tokenizer": "t"})
    monkeypatch.setattr(token_client, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install transformers"):
        OpenAIBackend("m", {"base_url": "http://h/v1", "api": "generate"})
    monkeypatch.setattr(token_client, "find_spec", lambda name: True)
    one = OpenAIBackend("m", {"base_url": "http://h:8000/v1/", "api": "generate"})
    assert str(one.limited()[0].url) == "http://h:8000/inference/v1/generate"
