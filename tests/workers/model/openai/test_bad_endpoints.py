"""Whatever a server sends, a call ends: with an answer, or with a fault that says in one line what was wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import resource

import msgspec
import pytest
from gymq_workers.model.openai import backend as openai_backend
from gymq_workers.model.openai import endpoint

from gymq.errors import CallError
from gymq.wire.message import decode_message
from tests.support.endpoint import GOOD, KEY, Endpoint, call, called, chat, check, http, item, js
from tests.support.model_server import ask


async def stall(reader, writer):
    await asyncio.sleep(30)


async def drip(reader, writer):
    """A byte now and then."""
    for byte in http(b"{}" * 100):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def stall_in_body(reader, writer):
    writer.write(http(b'{"choices":', length=100))
    await writer.drain()
    await asyncio.sleep(30)


async def endless(reader, writer):
    """Chunks without end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
            await writer.drain()


async def endless_error(reader, writer):
    """An error without end."""
    writer.write(b"HTTP/1.1 400 Bad\r\nContent-Type: text/plain\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"no " * 100_000)
            await writer.drain()


async def endless_headers(reader, writer):
    """Headers without end."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"X-A: " + b"a" * 1000 + b"\r\n")
            await writer.drain()


async def continues(reader, writer):
    """100 Continue without end."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)


#: A year that none of these tests will see.
DATE = "Mon, 27 Dec 2100 16:00:00 GMT"


PASSING = "model_unavailable"


#: What the server does: bytes that it answers, or a coroutine; and the fault.
ALL_APIS = {
    "accepts and never answers": (stall, "timeout"),
    "a byte now and then": (drip, "timeout"),
    "headers, then nothing": (stall_in_body, "timeout"),
    "100 Continue without end": (continues, "timeout"),
    "accepts and closes": (b"", PASSING),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-", PASSING),
    "headers without end": (endless_headers, PASSING),
    "another protocol": (b"220 mail.example.org ESMTP Postfix\r\n", PASSING),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x46", PASSING),
    "a status that is no number": (b"HTTP/1.1 abc OK\r\n\r\n", PASSING),
    "a wrong chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", PASSING),
    "an encoding that it has not": (http(b"no gzip", Content_Encoding="gzip"), PASSING),
    "an unknown encoding": (http(b"{}", Content_Encoding="x-rot13"), "model"),
    "cut-off JSON": (http(b'{"choices":[{"mess'), PASSING),
    "a cut-off body": (http(b'{"choices":[', length=1000), PASSING),
    "an empty body": (http(), PASSING),
    "null": (http(b"null"), "model"),
    "a list": (http(b"[]"), "model"),
    "a number": (http(b"17"), "model"),
    "a string": (http(b'"hello"'), "model"),
    "an empty object": (http(b"{}"), "model"),
    "HTML": (http(b"<html>Log in</html>", kind="text/html"), PASSING),
    "HTML that calls itself JSON": (http(b"<html>Log in</html>"), PASSING),
    "a kind that is no text": (http(b"x", kind="text/\xff\x1b[31m"), PASSING),
    "two values": (http(b"{}{}"), PASSING),
    "NaN": (http(b'{"choices":NaN,"output":NaN}'), PASSING),
    "Infinity": (http(b'{"choices":-Infinity,"output":-Infinity}'), PASSING),
    "a list of 100k lists": (http(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b',"output":3}'), "model"),
    "100k lists in a field that nobody reads": (http(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "model"),
    "an endless body": (endless, "model"),
    "an endless error": (endless_error, "model"),
    "a gzip bomb": (http(gzip.compress(b" " * 100_000_000), Content_Encoding="gzip"), "model"),
    "no choices": (js({"choices": [], "output": None}), "model"),
    "a redirect to itself": (http(status=302, Location="/v1/chat/completions"), "model"),
    "a redirect elsewhere": (http(status=307, Location="http://127.0.0.1:1/steal"), "model"),
    "a redirect to nowhere": (http(status=301), "model"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "model"),
    "400": (http(b'{"error":{"message":"bad temperature"}}', 400), "model"),
    "400, no fit": (http(b'{"error":{"message":"maximum context length is 4096 tokens"}}', 400), "context_overflow"),
    "401": (http(b'{"error":{"message":"bad key sk-very-secret-key"}}', 401), "model_access"),
    "401, the key first": (http(KEY.encode() * 1000, 401, kind="text/plain"), "model_access"),
    "403": (http(b"\x1b]0;owned\x07 no \xff\xfe", 403, kind="text/plain"), "model_access"),
    "404": (http(b"<html>not here</html>", 404, kind="text/html"), "model_access"),
    "418 without a body": (http(status=418), "model"),
    "an error of 100k lists": (http(b"[" * 100_000, 400), "model"),
    "999": (http(status=999), PASSING),
    **{f"{status}": (http(b"{}", status), PASSING) for status in (429, 500, 502, 503, 504, 529)},
    "429 after a while": (http(b"{}", 429, Retry_After="0.01"), PASSING),
    "429 after -5 s": (http(b"{}", 429, Retry_After="-5"), PASSING),
    "429 after nan": (http(b"{}", 429, Retry_After="nan"), PASSING),
    "429 after soon": (http(b"{}", 429, Retry_After="soon"), PASSING),
}


CHAT = {
    "a message that is null": (js({"choices": [{"message": None}]}), "model"),
    "a choice that is null": (js({"choices": [None]}), "model"),
    "content that is a number": (js(chat(content=5)), "model"),
    "a part whose text is a number": (js(chat(content=[{"type": "text", "text": 5}])), "model"),
    "invalid UTF-8": (http(b'{"choices":[{"message":{"content":"\xff\xfe"}}]}'), PASSING),
    "a lone surrogate": (http(b'{"choices":[{"message":{"content":"\\ud800"}}]}'), PASSING),
    "arguments that are a number": (called(call(arguments=5)), "model"),
    "a tool call without a function": (called({"id": "a"}), "model"),
    "usage that is negative": (js({**GOOD["chat"], "usage": {"prompt_tokens": -1}}), "model"),
    "usage of 10^30": (
        http(msgspec.json.encode(GOOD["chat"])[:-1] + b',"usage":{"prompt_tokens":1' + b"0" * 30 + b"}}"),
        "model",
    ),
    "usage in words": (js({**GOOD["chat"], "usage": {"prompt_tokens": "many"}}), "model"),
    "one logprob for two tokens": (
        js({"choices": [{"message": {"content": "x"}, "token_ids": [1, 2], "logprobs": {"content": [{"logprob": -1}]}}]}),
        "model",
    ),
    "token ids of 2^40": (js({"choices": [{"message": {"content": "x"}, "token_ids": [1 << 40]}]}), "model"),
    "logprobs of 1e300": (
        js({"choices": [{"message": {"content": "x"}, "token_ids": [1], "logprobs": {"content": [{"logprob": -1e300}]}}]}),
        "model",
    ),
}


RESPONSES = {
    "output that is null": (js({"output": None}), "model"),
    "an item that is null": (js({"output": [None]}), "model"),
    "content that is a number": (js({"output": [{"type": "message", "content": 5}]}), "model"),
    "arguments that are a number": (item(arguments=5), "model"),
    "a name that is null": (item(name=None), "model"),
    "usage that is negative": (js({**GOOD["responses"], "usage": {"input_tokens": -1}}), "model"),
    "failed": (js({"status": "failed", "output": [], "error": {"code": "server_error", "message": KEY}}), PASSING),
}


TABLE = [(api, *case) for api in ("chat", "responses") for case in ALL_APIS.items()]


TABLE += [("chat", *case) for case in CHAT.items()] + [("responses", *case) for case in RESPONSES.items()]


@pytest.mark.parametrize(("api", "what", "case"), TABLE, ids=[f"{api}-{what}" for api, what, _ in TABLE])
async def test_a_bad_answer_ends_the_call_with_its_fault(backend, api, what, case):
    act, kind = case
    endpoint = Endpoint(act)
    async with endpoint.running() as url:
        one = await backend(base_url=url, api=api, retries=1, timeout=0.3 if kind == "timeout" else 10)
        with pytest.raises(CallError) as caught:
            await one.generate(ask("Hello"))
        check(caught.value.fault)
        assert caught.value.fault.kind == kind, caught.value.fault
        assert endpoint.asked == (2 if kind in (PASSING, "timeout") else 1)
        endpoint.act = js(GOOD[api])  # and the worker goes on
        assert decode_message((await one.generate(ask("Hello"))).message).content == "hi"


@pytest.mark.parametrize("after", ["100000000", DATE, "1e308", "inf"])
async def test_an_absurd_retry_after_is_cut_short(backend, monkeypatch, after):
    slept = []
    monkeypatch.setattr(openai_backend.asyncio, "sleep", lambda seconds: slept.append(seconds) or asyncio.wait_for(noop(), 1))
    async with Endpoint(http(b"{}", 429, Retry_After=after)).running() as url:
        with pytest.raises(CallError):
            await (await backend(base_url=url, retries=1)).generate(ask("Hello"))
    assert len(slept) == 1
    assert 60 <= slept[0] <= 61


async def noop():
    """Nothing."""


async def test_a_redirect_never_carries_the_key_elsewhere(backend):
    thief = Endpoint(js(GOOD["chat"]))
    async with thief.running() as there:
        for status in (301, 302, 303, 307, 308):
            async with Endpoint(http(status=status, Location=f"{there}/chat/completions")).running() as url:
                with pytest.raises(CallError):
                    await (await backend(base_url=url)).generate(ask("Hello"))
                await (await backend(base_url=url)).probe()
    assert not any(KEY.encode() in head for head in thief.heads)


@pytest.mark.parametrize(
    ("path", "remedy"), [("", "try --base-url {url}/v1"), ("/", "try --base-url {url}/v1"), ("/v1", "which for most")]
)
async def test_an_address_without_its_version_is_told_with_the_remedy(backend, path, remedy):
    async with Endpoint(http(b"<html>not here</html>", 404, kind="text/html")).running() as url:
        root = url.removesuffix("/v1")
        one = await backend(base_url=root + path)
        with pytest.raises(CallError) as caught:
            await one.generate(ask("Hello"))
        assert remedy.format(url=root) in caught.value.fault.message
        told = f"{root.removeprefix('http://')} has no /models (HTTP 404); try --base-url {root}/v1"
        assert await one.probe() == ("" if path == "/v1" else told)


async def test_tls_to_a_plain_port_is_a_fault(backend, monkeypatch):
    monkeypatch.setattr(endpoint, "CONNECT_TIMEOUT", 1.0)
    async with Endpoint(js(GOOD["chat"])).running() as url:
        with pytest.raises(CallError) as caught:
            await (await backend(base_url=url.replace("http:", "https:"), retries=0)).generate(ask("Hello"))
    check(caught.value.fault)
    assert caught.value.fault.kind == PASSING


@pytest.mark.parametrize("host", ["no-such-host.invalid", "127.0.0.1:1"])
async def test_a_host_that_cannot_be_is_a_fault(backend, host):
    with pytest.raises(CallError) as caught:
        await (await backend(base_url=f"http://{host}/v1", retries=0)).generate(ask("Hello"))
    check(caught.value.fault)
    assert caught.value.fault.kind == PASSING


@pytest.mark.heavy
async def test_a_bomb_and_an_endless_body_do_not_fill_the_memory(backend):
    bomb = http(gzip.compress(b" " * 2_000_000_000, compresslevel=1), Content_Encoding="gzip")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with Endpoint(bomb).running() as url:
        with pytest.raises(CallError, match="more than 64 MiB"):
            await (await backend(base_url=url, retries=0)).generate(ask("Hello"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


async def test_a_call_that_is_cancelled_ends_its_request(backend):
    ended = asyncio.Event()

    async def wait(reader, writer):
        await reader.read()  # until the other side closes
        ended.set()

    endpoint = Endpoint(wait)
    async with endpoint.running() as url:
        task = asyncio.create_task((await backend(base_url=url)).generate(ask("Hello")))
        while not endpoint.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 20)
