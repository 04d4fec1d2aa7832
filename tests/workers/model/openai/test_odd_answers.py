"""Answers that are odd, and answers all the same."""

from __future__ import annotations

import gzip

import msgspec
import pytest

from gymq.wire.message import decode_message
from tests.support.endpoint import GOOD, Endpoint, call, called, chat, http, js
from tests.support.model_server import ask

GOOD_ENOUGH = {
    "JSON that is called text": (http(msgspec.json.encode(GOOD["chat"]), kind="text/plain; charset=utf-8"), "hi"),
    "JSON without a kind": (b"HTTP/1.1 200 OK\r\n\r\n" + msgspec.json.encode(GOOD["chat"]), "hi"),
    "gzip": (http(gzip.compress(msgspec.json.encode(GOOD["chat"])), Content_Encoding="gzip"), "hi"),
    "10 MB on a line": (js(chat(content="x" * 10_000_000)), "x" * 10_000_000),
    "no usage": (js({**GOOD["chat"], "usage": None}), "hi"),
    "a nul": (js(chat(content="a\0b")), "a\0b"),
    "a pair of surrogates": (http(b'{"choices":[{"message":{"content":"\\ud83d\\ude00"}}]}'), "\U0001f600"),
}


@pytest.mark.parametrize("what", GOOD_ENOUGH)
async def test_an_odd_answer_is_an_answer(backend, what):
    act, content = GOOD_ENOUGH[what]
    async with Endpoint(act).running() as url:
        answer = await (await backend(base_url=url, retries=0)).generate(ask("Hello"))
    assert decode_message(answer.message).content == content


@pytest.mark.parametrize(
    "calls",
    [
        [call()],
        [call(id=None), call(id="")],
        [call(id="same"), call(id="same"), call(id="same")],
        [call(name="", id="a")],
        [call(name="f" * 10_000, id="a")],
        [call(arguments={"a": 1}, id="a")],
        [call(arguments=None, id="a")],
        [call(arguments="{not json", id="a")],
    ],
)
async def test_odd_tool_calls_have_ids_of_their_own(backend, calls):
    async with Endpoint(called(*calls)).running() as url:
        answer = await (await backend(base_url=url, retries=0)).generate(ask("Hello"))
    got = decode_message(answer.message).tool_calls
    assert len({each.id for each in got}) == len(calls)
    assert all(each.id and isinstance(each.function.arguments, str) for each in got)


async def test_calls_of_responses_with_the_same_id_get_their_own(backend):
    output = [{"type": "function_call", "call_id": "same", "name": "f", "arguments": "{}"}] * 2
    async with Endpoint(js({"status": "completed", "output": output})).running() as url:
        answer = await (await backend(base_url=url, api="responses", retries=0)).generate(ask("Hello"))
    assert len({each.id for each in decode_message(answer.message).tool_calls}) == 2
