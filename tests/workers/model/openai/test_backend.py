"""The backend `openai` against a real server process, with every failure that a server can have."""

from __future__ import annotations

import asyncio
import socket
import time

import msgspec
import pytest
from gymq_workers.model.openai import backend as openai_backend
from gymq_workers.model.openai import endpoint

from gymq.errors import CallError
from gymq.observe import events
from gymq.wire.message import Message, decode_message
from tests.support.model_server import ask, fault, run_server

QUESTION = "What is the weather in Paris?"


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_tool_call_comes_back_as_one_message(backend, api):
    answer = await (await backend(api=api)).generate(ask(QUESTION))
    message = decode_message(answer.message)
    assert message.role == "assistant"
    assert message.content is None
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [
        ("get_weather", '{"city":"Paris"}')
    ]
    assert (answer.finish, answer.model, answer.tokens) == ("tool_calls", "mock", None)
    assert answer.usage.input_tokens > 5
    assert answer.usage.output_tokens == 7


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_whole_conversation_is_understood(backend, api):
    one = await backend(api=api)
    first = await one.generate(ask(Message("system", "Be brief."), QUESTION, body=b'{"temperature":0.5,"max_tokens":9}'))
    call = decode_message(first.message)
    result = Message("tool", "It is sunny.", tool_call_id=call.tool_calls[0].id, name="get_weather")
    second = await one.generate(ask(Message("system", "Be brief."), QUESTION, call, result))
    assert decode_message(second.message).content == "You said: It is sunny."
    assert second.finish == "stop"


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize(("model", "finish"), [("mock-length", "length"), ("mock-filter", "content_filter")])
async def test_a_cut_answer_says_why(backend, api, model, finish):
    assert (await (await backend(model, api=api)).generate(ask("Hello"))).finish == finish


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_reasoning_is_recorded(backend, api):
    answer = await (await backend("mock-reasoning", api=api)).generate(ask("Hello"))
    assert decode_message(answer.message) == Message("assistant", "You said: Hello", "Let me think.")


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_refusal_is_what_was_said(backend, api):
    answer = await (await backend("mock-refusal", api=api)).generate(ask("Hello"))
    assert (decode_message(answer.message).content, answer.finish) == ("I will not.", "stop")


async def test_an_empty_answer_is_an_answer(backend):
    answer = await (await backend("mock-bare")).generate(ask("Hello"))
    assert decode_message(answer.message) == Message("assistant", "")


async def test_arguments_that_are_an_object_become_text(backend):
    answer = await (await backend("mock-objects")).generate(ask(QUESTION))
    assert decode_message(answer.message).tool_calls[0].function.arguments == '{"city":"Paris"}'


@pytest.mark.slow
async def test_hundreds_of_calls_at_once_are_answered(backend):
    one = await backend()
    answers = await asyncio.gather(*[one.generate(ask(f"weather in City{i}")) for i in range(400)])
    cities = [msgspec.json.decode(decode_message(a.message).tool_calls[0].function.arguments)["city"] for a in answers]
    assert cities == [f"City{i}" for i in range(400)]


async def test_a_conversation_of_megabytes_is_sent(backend):
    answer = await (await backend()).generate(ask("x" * 3_000_000))
    assert len(decode_message(answer.message).content) == 3_000_000 + len("You said: ")


# Failures that pass


@pytest.mark.parametrize(
    "kind", ["408", "409", "425", "429", "500", "503", "close", "cut", "badjson", "html", "abort", "error200"]
)
async def test_a_failure_that_passes_is_tried_again(backend, kind):
    answer = await (await backend(f"mock-{kind}/2/again")).generate(ask("Hello"))
    assert decode_message(answer.message).content == "You said: Hello"


@pytest.mark.parametrize("kind", ["429", "500", "close", "cut", "badjson", "html", "abort", "error200"])
async def test_a_failure_that_stays_ends_the_call(backend, kind):
    found = await fault(await backend(f"mock-{kind}", retries=2), ask("Hello"))
    assert found.kind == "model_unavailable"
    assert "127.0.0.1" in found.message
    assert found.message.endswith("(tried 3 times)")


async def test_a_failed_response_is_tried_again(backend):
    found = await fault(await backend("mock-abort", api="responses", retries=1), ask("Hello"))
    assert found.kind == "model_unavailable"
    assert "it failed" in found.message


async def test_nobody_listens(backend):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = await fault(await backend(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", retries=1), ask("Hello"))
    assert found.kind == "model_unavailable"
    assert found.message.startswith("cannot reach 127.0.0.1:")


async def test_no_such_host(backend):
    found = await fault(await backend(base_url="http://no-such-host.invalid/v1", retries=0), ask("Hello"))
    assert found.kind == "model_unavailable"


async def test_a_server_that_hangs_ends_as_a_timeout(backend):
    found = await fault(await backend("mock-hang", timeout=0.1, retries=1), ask("Hello"))
    assert found.kind == "timeout"
    assert "within 0.1 s (tried 2 times)" in found.message


async def test_a_server_that_hung_once_is_tried_again(backend):
    answer = await (await backend("mock-hang/1/once", timeout=0.1)).generate(ask("Hello"))
    assert answer.finish == "stop"


async def test_retry_after_is_honoured(backend):
    for url in run_server("--fail-rate", "1", "--status", "429", "--retry-after", "0.6", "--times", "1"):
        one = await backend(base_url=f"{url}/v1")
        began = time.monotonic()
        await one.generate(ask("Hello"))
        assert time.monotonic() - began >= 0.6


async def test_a_retry_after_in_the_past_is_now(backend):
    assert (await (await backend("mock-date/1/past")).generate(ask("Hello"))).finish == "stop"


async def test_a_connection_that_the_server_closed_is_replaced(backend, monkeypatch):
    monkeypatch.setattr(endpoint, "KEEP_ALIVE", 60)
    listener = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    async with listener:
        one = await backend(base_url=f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1")
        for _ in range(3):
            assert (await one.generate(ask("Hello"))).finish == "stop"


async def answer_once(reader, writer):
    """Answer one request as a server that keeps connections alive, then close without a word."""
    await reader.readuntil(b"\r\n\r\n")
    body = b'{"choices":[{"message":{"content":"hi"}}]}'
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()
    writer.close()


# Failures that do not pass


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refused_request_ends_the_call_at_once(backend, status):
    one = await backend(f"mock-{status}/1/refused")
    found = await fault(one, ask("Hello"))
    assert found.kind == ("model_access" if status in (401, 403, 404) else "model")
    assert found.message.startswith(f"HTTP {status} from 127.0.0.1:")
    assert f"failing with {status}" in found.message


async def test_a_refused_key_is_named_and_so_is_a_missing_one(backend, monkeypatch):
    named = await fault(await backend("mock-401"), ask("Hello"))
    assert named.message.endswith("; correct the key in OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    missing = await fault(await backend("mock-403"), ask("Hello"))
    assert missing.message.endswith("; OPENAI_API_KEY is not set: set it")
    unknown = await fault(await backend("mock-404"), ask("Hello"))
    assert unknown.message.endswith("; check --model and --base-url, which for most servers ends in /v1")


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_prompt_that_does_not_fit_is_an_overflow(backend, api):
    found = await fault(await backend("mock-overflow", api=api), ask("Hello"))
    assert found.kind == "context_overflow"
    assert "maximum context length is 4096" in found.message


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("kind", ["nonsense", "nochoices"])
async def test_json_that_is_no_answer_ends_the_call_at_once(backend, api, kind):
    found = await fault(await backend(f"mock-{kind}/1/{api}", api=api), ask("Hello"))
    assert found.kind == "model"
    assert found.message.startswith("nonsense from 127.0.0.1:")


async def test_json_that_is_nested_without_end_is_nonsense(backend):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"error":' + b"[" * 100_000
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()  # from Python 3.12 on the server's end waits for its connections

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        assert (await fault(await backend(base_url=url), ask("Hello"))).kind == "model"


@pytest.mark.slow
async def test_an_endless_body_is_not_read_to_its_end(backend):
    found = await fault(await backend("mock-huge"), ask("Hello"))
    assert (found.kind, "more than 64 MiB" in found.message) == ("model", True)


async def test_the_key_stands_in_no_error(backend):
    found = await fault(await backend("mock-keyecho"), ask("Hello"))
    assert "bad key: Bearer ***" in found.message


async def test_a_redirect_is_not_followed(backend):
    found = await fault(await backend("mock-302"), ask("Hello"))
    assert (found.kind, found.message[:8]) == ("model", "HTTP 302")


async def test_a_probe_tells_a_server_that_is_not_there_and_says_nothing_of_one_that_is(backend):
    assert await (await backend()).probe() == ""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        with pytest.raises(CallError, match="does not answer") as caught:
            await openai_backend.OpenAIBackend("mock", {"base_url": base}).probe()
    assert "\n" not in str(caught.value)


async def test_each_try_is_told_of_with_its_status(backend):
    told: list[events.ModelRequested] = []
    events.subscribe(events.ModelRequested, told.append)
    try:
        await (await backend("mock-503/1/told")).generate(ask("Hello"))
        await (await backend("mock-429/1/told")).generate(ask("Hello"))
        await fault(await backend("mock-401"), ask("Hello"))
        await fault(await backend("mock-nonsense/1/told"), ask("Hello"))
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            base = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
            await fault(await backend(base_url=base, retries=0), ask("Hello"))
    finally:
        events.unsubscribe(told.append)
    assert [one.status for one in told] == [503, 200, 429, 200, 401, 0, 0]
    assert len({one.endpoint for one in told}) == 2
