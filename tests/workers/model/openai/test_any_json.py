"""JSON that looks like an answer, here and there: an answer, or a fault."""

from __future__ import annotations

import asyncio

import msgspec
from gymq_workers.model.openai.backend import OpenAIBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gymq.errors import CallError, Fault
from gymq.wire.calls import Generated, encode
from gymq.wire.message import decode_message
from tests.support.endpoint import Endpoint, check, http
from tests.support.model_server import ask
from tests.support.tiers import examples

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)


WORDS = st.sampled_from(
    [
        *(
            "choices",
            "message",
            "content",
            "tool_calls",
            "function",
            "name",
            "arguments",
            "id",
            "finish_reason",
            "usage",
            "logprobs",
        ),
        *(
            "logprob",
            "token",
            "token_ids",
            "prompt_token_ids",
            "output",
            "type",
            "call_id",
            "text",
            "refusal",
            "status",
            "error",
        ),
        *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "input_tokens_details", "cached_tokens"),
        *("code", "model", "incomplete_details", "reason", "summary"),
    ]
)


ANY = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5), max_leaves=20
)


TOOL = st.fixed_dictionaries(
    {},
    optional={
        "id": ANY,
        "function": st.fixed_dictionaries({}, optional={"name": st.text() | ANY, "arguments": st.text() | ANY}),
    },
)


SAID = st.fixed_dictionaries(
    {}, optional={"content": st.text() | ANY, "tool_calls": st.lists(TOOL, max_size=3) | ANY, "refusal": ANY}
)


IDS = st.lists(st.integers(-5, 1 << 40), max_size=3)


CHOICE = st.fixed_dictionaries(
    {"message": SAID | ANY}, optional={"finish_reason": st.text() | ANY, "token_ids": IDS | ANY, "logprobs": ANY}
)


USAGE = st.dictionaries(WORDS, st.integers() | ANY, max_size=4)


ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "reasoning", ""]) | ANY},
    optional={
        "content": st.lists(st.dictionaries(WORDS, ANY, max_size=3), max_size=2) | ANY,
        "name": st.text() | ANY,
        "arguments": st.text() | ANY,
        "call_id": st.text() | ANY,
        "generation_token_ids": IDS,
    },
)


ANSWERS = ANY | st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(CHOICE, min_size=1, max_size=2),
        "output": st.lists(ITEM, max_size=3),
        "usage": USAGE,
        "error": ANY,
    },
)


@given(ANSWERS, st.sampled_from(["chat", "responses"]), st.sampled_from([200, 200, 200, 400, 429]))
@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_an_answer_or_a_fault(value, api, status):
    body = msgspec.json.encode(value) if not isinstance(value, bytes) else value

    async def once():
        async with Endpoint(http(body, status)).running() as url:
            one = OpenAIBackend("mock", {"base_url": url, "api": api, "retries": 0})
            await one.start()
            try:
                return await one.generate(ask("Hello"))
            except CallError as error:
                return error.fault
            finally:
                await one.stop()

    found = asyncio.run(once())
    if isinstance(found, Fault):
        check(found)
    else:
        assert isinstance(found, Generated)
        encode(found)
        message = decode_message(found.message)
        assert message.role == "assistant"
        assert len({each.id for each in message.tool_calls}) == len(message.tool_calls)
