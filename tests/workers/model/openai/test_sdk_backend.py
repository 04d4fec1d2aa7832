"""The backends `sdk` and `azure` against a real server process: whole and streamed answers, and every failure."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import socket
import time
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from gymq_workers.model.openai import bounded_client
from gymq_workers.model.openai.sdk_backend import AzureBackend, SdkBackend

from gymq.errors import UsageError
from gymq.wire.message import Message, decode_message
from tests.support.model_server import ask, fault
from tests.support.tiers import slow

QUESTION = "What is the weather in Paris?"

#: Both kinds of client, both forms, whole and streamed: each once in the quick tests.
WAYS = [
    ("sdk", "chat", "false"),
    ("azure", "responses", "true"),
    *slow(("sdk", "chat", "true"), ("sdk", "responses", "false"), ("sdk", "responses", "true")),
    *slow(("azure", "chat", "false"), ("azure", "chat", "true"), ("azure", "responses", "false")),
]


@pytest.fixture
async def make(server: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Makes started backends: `make("azure", "mock-429", retries=0)`."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "az-very-secret-key")
    monkeypatch.setattr("gymq_workers.model.openai.retry.FIRST_WAIT", 0.005)
    made: list[SdkBackend] = []

    async def start(kind: str = "sdk", model: str = "mock", **options: Any) -> SdkBackend:
        if kind == "azure":
            one: SdkBackend = AzureBackend(model, {"base_url": server, "api_version": "2024-10-21", **options})
        else:
            one = SdkBackend(model, {"base_url": f"{server}/v1", **options})
        await one.start()
        made.append(one)
        return one

    yield start
    for one in made:
        await one.stop()


@pytest.mark.parametrize(("kind", "api", "stream"), WAYS)
async def test_a_conversation_with_a_tool_is_understood(make, kind, api, stream):
    one = await make(kind, api=api, stream=stream)
    first = await one.generate(ask(Message("system", "Be brief."), QUESTION, body=b'{"temperature":0.5,"max_tokens":9}'))
    call = decode_message(first.message)
    assert (call.content, call.tool_calls[0].function.arguments) == (None, '{"city":"Paris"}')
    assert (first.finish, first.model, first.usage.output_tokens, first.tokens) == ("tool_calls", "mock", 7, None)
    assert first.usage.input_tokens > 5
    result = Message("tool", "It is sunny.", tool_call_id=call.tool_calls[0].id, name="get_weather")
    second = await one.generate(ask(QUESTION, call, result))
    assert (decode_message(second.message).content, second.finish) == ("You said: It is sunny.", "stop")


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_reasoning_refusals_token_ids_and_cut_answers_are_those_of_the_backend_openai(make, backend, stream):
    for model in ("mock-reasoning", "mock-refusal", "mock-tokens", "mock-length", "mock-filter"):
        theirs = await (await make("sdk", model, stream=stream)).generate(ask("Hello"))
        ours = await (await backend(model)).generate(ask("Hello"))
        assert (theirs.message, theirs.finish, theirs.tokens) == (ours.message, ours.finish, ours.tokens), model


@pytest.mark.parametrize(("kind", "api", "stream"), WAYS)
async def test_a_failure_that_passes_is_tried_again(make, kind, api, stream):
    for status in ("429", "500", "503", "abort"):
        one = await make(kind, f"mock-{status}/2/{kind}{api}{stream}", api=api, stream=stream)
        assert decode_message((await one.generate(ask("Hello"))).message).content == "You said: Hello"


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("how", ["close", "cut", "badjson", "error200"])
async def test_a_connection_that_breaks_and_an_answer_that_is_none_are_tried_again(make, how, stream):
    model = f"mock-{'429' if how == 'close' and stream == 'true' else how}/1/{stream}"
    assert (await (await make("sdk", model, stream=stream)).generate(ask("Hello"))).finish == "stop"
    found = await fault(await make("sdk", f"mock-{how if how != 'close' else '500'}", stream=stream, retries=1), ask("Hello"))
    assert found.kind == "model_unavailable"
    assert found.message.endswith("(tried 2 times)")


async def test_a_stream_that_says_that_it_failed_is_tried_again(make):
    found = await fault(await make("azure", "mock-error", stream="true", retries=1), ask("Hello"))
    assert (found.kind, "it broke" in found.message) == ("model_unavailable", True)


@pytest.mark.parametrize(("kind", "api", "stream"), WAYS)
async def test_a_refused_request_ends_the_call_at_once(make, kind, api, stream):
    for status in (400, 401, 403, 404, 422):
        found = await fault(await make(kind, f"mock-{status}", api=api, stream=stream), ask("Hello"))
        assert found.kind == ("model_access" if status in (401, 403, 404) else "model")
        assert found.message.startswith(f"HTTP {status} from 127.0.0.1:")
        assert f"failing with {status}" in found.message


@pytest.mark.parametrize("kind", ["sdk", "azure"])
async def test_a_prompt_that_does_not_fit_is_an_overflow(make, kind):
    found = await fault(await make(kind, "mock-overflow"), ask("Hello"))
    assert (found.kind, "maximum context length is 4096" in found.message) == ("context_overflow", True)


@pytest.mark.parametrize("kind", ["sdk", "azure"])
async def test_the_key_stands_in_no_error(make, kind):
    found = await fault(await make(kind, "mock-keyecho"), ask("Hello"))
    assert (found.kind, "bad key: " in found.message, "***" in found.message) == ("model_access", True, True)


async def test_a_redirect_is_not_followed(make):
    found = await fault(await make("sdk", "mock-302", retries=0), ask("Hello"))
    assert (found.kind, found.message[:8]) == ("model", "HTTP 302")


@pytest.mark.slow
async def test_an_endless_body_is_not_read_to_its_end(make):
    found = await fault(await make("sdk", "mock-huge"), ask("Hello"))
    assert (found.kind, "more than 64 MiB" in found.message) == ("model", True)


@contextlib.asynccontextmanager
async def serving(head: bytes, pieces: Iterable[bytes], taken: list[int]):
    """The base URL of a server with one answer; `taken` tells how many bytes of it were taken."""

    async def answer(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + head + b"\r\nConnection: close\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                taken.append(len(piece))
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_of_an_errors_body_only_the_beginning_is_unpacked(make, monkeypatch, stream):
    unpacked = []
    monkeypatch.setattr(bounded_client.zlib, "decompressobj", lambda **how: Counted(zlib_decompressobj(**how), unpacked))
    body = gzip.compress(b'{"error": {"message": "too bad"}}' + b" " * (16 << 20), compresslevel=1)
    async with serving(b"400 No\r\nContent-Encoding: gzip", [body], []) as url:
        found = await fault(await make(base_url=url, stream=stream, retries=0), ask("Hello"))
    assert (found.kind, "too bad" in found.message) == ("model", True)
    assert 0 < sum(unpacked) < 1 << 20


async def test_an_answer_that_unpacks_to_more_than_any_is_no_answer(make, monkeypatch):
    unpacked = []
    monkeypatch.setattr(bounded_client.zlib, "decompressobj", lambda **how: Counted(zlib_decompressobj(**how), unpacked))
    monkeypatch.setattr(bounded_client, "LARGEST_BODY", 2 << 20)
    async with serving(b"200 OK\r\nContent-Encoding: gzip", [gzip.compress(b" " * (16 << 20), compresslevel=1)], []) as url:
        found = await fault(await make(base_url=url, retries=0), ask("Hello"))
    assert (found.kind, "sent more than 2 MiB" in found.message) == ("model", True)
    assert sum(unpacked) < 3 << 20


@pytest.mark.parametrize("status", [b"200 OK", b"400 No"])
async def test_an_event_without_an_end_is_not_read_to_its_end(make, status):
    taken: list[int] = []
    line = itertools.chain([b'data: {"choices": [{"delta": {"content": "'], itertools.repeat(b"a" * (1 << 16), 384))
    async with serving(status + b"\r\nContent-Type: text/event-stream", line, taken) as url:
        found = await fault(await make(base_url=url, stream="true", retries=0), ask("Hello"))
    assert (found.kind, "an event of more than 8 MiB" in found.message) == ("model", status == b"200 OK")
    assert sum(taken) < 20 << 20


async def test_a_stream_without_an_end_is_not_read_to_its_end(make, monkeypatch):
    monkeypatch.setattr(bounded_client, "LARGEST_STREAM", 1 << 16)
    events = itertools.repeat(b'data: {"choices": [{"delta": {}}]}\n\n' * 100)
    async with serving(b"200 OK\r\nContent-Type: text/event-stream", events, []) as url:
        found = await fault(await make(base_url=url, stream="true", retries=0), ask("Hello"))
    assert (found.kind, "sent more than" in found.message) == ("model", True)


@pytest.mark.parametrize("packing", ["gzip", "deflate", "identity"])
async def test_a_packed_answer_is_unpacked_and_another_packing_is_refused(make, packing):
    body = b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}'
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[packing](body)
    async with serving(
        b"200 OK\r\nContent-Type: application/json\r\nContent-Encoding: " + packing.encode(), [packed], []
    ) as url:
        said = await (await make(base_url=url, retries=0)).generate(ask("Hello"))
    assert decode_message(said.message).content == "Hi"
    async with serving(b"200 OK\r\nContent-Encoding: br", [packed], []) as url:
        found = await fault(await make(base_url=url, retries=0), ask("Hello"))
    assert (found.kind, "packed as br" in found.message) == ("model_unavailable", True)


zlib_decompressobj = zlib.decompressobj


class Counted:
    """An unpacker that tells how many bytes it made."""

    def __init__(self, real, made: list[int]) -> None:
        self.real, self.made = real, made

    @property
    def unconsumed_tail(self) -> bytes:
        return self.real.unconsumed_tail

    def decompress(self, packed: bytes, limit: int = 0) -> bytes:
        piece = self.real.decompress(packed, limit)
        self.made.append(len(piece))
        return piece


@pytest.mark.parametrize(("kind", "api", "stream"), WAYS)
async def test_an_endpoint_that_takes_a_request_and_never_answers_ends_at_its_limit(make, kind, api, stream):
    began = time.monotonic()
    found = await fault(await make(kind, "mock-hang", api=api, stream=stream, timeout=0.3, retries=1), ask("Hello"))
    assert (found.kind, "within 0.3 s (tried 2 times)" in found.message) == ("timeout", True)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("kind", ["sdk", "azure"])
async def test_a_stream_that_stops_ends_long_before_the_whole_answer_would_be_late(make, kind):
    one = await make(kind, "mock-stall", stream="true", chunk_timeout=0.3, retries=1)
    began = time.monotonic()
    found = await fault(one, ask("Hello"))
    assert (found.kind, "no further piece of the answer" in found.message) == ("timeout", True)
    assert time.monotonic() - began < 10


@pytest.mark.slow
async def test_a_stream_may_take_longer_than_a_pause_if_it_goes_on(make):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.8)  # before the first piece it may think
        for text in (b'"delta":{"content":"Hi"}', b'"delta":{"content":" you"}', b'"delta":{},"finish_reason":"stop"'):
            writer.write(b'data: {"choices":[{%b}]}\n\n' % text)
            await writer.drain()
            await asyncio.sleep(0.3)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        said = await (await make(base_url=url, stream="true", chunk_timeout=0.6, retries=0)).generate(ask("Hello"))
    assert decode_message(said.message).content == "Hi you"


@pytest.mark.parametrize(
    "piece", [b"[]", b'{"choices":3}', b'{"choices":[{"delta":[1]}]}', b'{"choices":[{"delta":{"content":3}}]}']
)
async def test_a_stream_of_nonsense_ends_the_call(make, piece):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: %b\n\n" % piece)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        found = await fault(await make(base_url=url, stream="true", retries=0), ask("Hello"))
    assert found.kind in ("model", "model_unavailable")


async def test_nobody_listens(make):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        found = await fault(await make(base_url=url, retries=1), ask("Hello"))
    assert (found.kind, found.message.startswith("cannot reach 127.0.0.1:")) == ("model_unavailable", True)


@pytest.mark.slow
async def test_hundreds_of_calls_at_once_are_answered(make):
    one = await make("azure")
    answers = await asyncio.gather(*[one.generate(ask(f"weather in City{i}")) for i in range(300)])
    assert [f"City{i}" in decode_message(a.message).tool_calls[0].function.arguments for i, a in enumerate(answers)] == [
        True
    ] * 300


async def test_azure_takes_a_token_instead_of_a_key(make, monkeypatch):
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "ad-very-secret-token")
    assert (await (await make("azure")).generate(ask("Hello"))).finish == "stop"
    assert "Bearer ***" in (await fault(await make("azure", "mock-keyecho"), ask("Hello"))).message


def test_options_that_make_no_sense_are_refused(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_AD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    there = {"base_url": "http://host", "api_version": "1"}
    for backend, model, options, words in [
        (SdkBackend, "m", {}, "sdk: OPENAI_API_KEY is not set"),
        (SdkBackend, "", {}, "write --model sdk:NAME"),
        (AzureBackend, "m", {}, "base_url or AZURE_OPENAI_ENDPOINT"),
        (AzureBackend, "m", {"base_url": "http://host"}, "api_version"),
        (AzureBackend, "m", there, "AZURE_OPENAI_AD_TOKEN; neither is"),
        (AzureBackend, "m", {**there, "stream": "maybe"}, "stream is 'maybe'"),
        (AzureBackend, "m", {**there, "chunk_timeout": "3"}, "set stream=true too"),
        (AzureBackend, "m", {**there, "api": "completions"}, "chat or responses"),
    ]:
        with pytest.raises(UsageError, match=words):
            backend(model, options)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "key")
    assert str(AzureBackend("m", there).limited()[0].url) == "http://host/openai/deployments/m/chat/completions"
    with pytest.raises(UsageError, match="the key belongs in AZURE_OPENAI_API_KEY"):
        AzureBackend("m", {**there, "base_url": "https://me:secret@host"})
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "token")
    with pytest.raises(UsageError, match="both are"):
        AzureBackend("m", there)
