"""The backend `openai` on a real vLLM server: token ids by chat completions, and exact ones by `/inference/v1/generate`."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gymq_workers.model.openai.backend import OpenAIBackend

from gymq.errors import CallError
from gymq.wire.calls import Tokens
from gymq.wire.message import Message, decode_message
from tests.support.model_server import ask
from tests.support.servers import free_port

pytest.importorskip("vllm")

pytestmark = pytest.mark.heavy

#: Seconds until a server answers; on two busy cores an engine takes a minute.
START_LIMIT = 240.0

SCHEMA = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the tiny model."""
    port = free_port()
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny), "--served-model-name", "tiny"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32", "--enable-scale-out"]
    argv += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(argv, env={**env, "VLLM_SERVER_DEV_MODE": "1"}, stdout=said, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + START_LIMIT
        while not healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


async def start(server: str, **options: Any) -> OpenAIBackend:
    one = OpenAIBackend("tiny", {"base_url": f"{server}/v1", "retries": 1, **options})
    await one.start()
    return one


def ids(packed: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(packed) // 4}i", packed))


async def converse(one: OpenAIBackend, rollout: str) -> list[Tokens]:
    """Three turns of what a random model says: text that comes back in other tokens when it is tokenized again."""
    turns: list[Message] = [Message("system", "Be brief."), Message("user", "Hello there")]
    found = []
    for _ in range(3):
        answer = await one.generate(ask(*turns, rollout=rollout, body=b'{"max_tokens":24,"temperature":1.0}'))
        assert answer.tokens is not None
        assert len(answer.tokens.output) == len(answer.tokens.logprobs) > 0
        assert answer.usage.output_tokens == len(answer.tokens.output) // 4
        found.append(answer.tokens)
        turns += [decode_message(answer.message), Message("user", "And more?")]
    return found


async def test_chat_completions_give_token_ids_and_logprobs(server):
    one = await start(server, token_ids=True)
    first, *_ = await converse(one, "chat.0.0")
    assert len(first.prompt) > 0
    await one.stop()


async def test_prompts_in_token_ids_go_on_from_what_was_sampled(server, tiny):
    one = await start(server, api="generate", tokenizer=str(tiny))
    for row in range(5):
        calls = await converse(one, f"exact.{row}.0")
        known = 0
        for tokens in calls:
            assert tokens.prompt_start == known
            known = tokens.prompt_start + (len(tokens.prompt) + len(tokens.output)) // 4
    await one.stop()


async def test_both_forms_sample_the_same_from_the_same_prompt(server, tiny):
    chat, exact = await start(server, token_ids=True), await start(server, api="generate", tokenizer=str(tiny))
    request = ask("Hello there", body=b'{"max_tokens":12,"temperature":0}')
    ours, theirs = await exact.generate(request), await chat.generate(request)
    assert ids(ours.tokens.prompt) == ids(theirs.tokens.prompt)
    assert ids(ours.tokens.output) == ids(theirs.tokens.output)
    logprobs = [struct.unpack("<12f", one.tokens.logprobs) for one in (ours, theirs)]
    assert max(abs(a - b) for a, b in zip(*logprobs, strict=True)) < 1e-3
    assert decode_message(ours.message) == decode_message(theirs.message)
    for one in (chat, exact):
        await one.stop()


async def test_the_version_of_the_weights_stands_at_each_token(server, tiny):
    request = urllib.request.Request(
        f"{server}/update_weight_version", data=b'{"new_version":"7"}', headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    one = await start(server, api="generate", tokenizer=str(tiny))
    assert (await one.generate(ask("Hello", body=b'{"max_tokens":4}'))).tokens.versions == [(0, 7)]
    await one.stop()


@pytest.mark.parametrize("api", ["chat", "responses", "generate"])
async def test_sampling_structured_output_and_overflow_are_the_same_in_all_forms(server, tiny, api):
    one = await start(server, api=api, **({"tokenizer": str(tiny)} if api == "generate" else {}))
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    body = msgspec.json.encode({"max_tokens": 400, "temperature": 0.7, "response_format": form})
    answer = await one.generate(ask("Say it", body=body))
    if answer.finish == "stop":  # a random model may write blanks until the end
        assert set(msgspec.json.decode(decode_message(answer.message).content)) == {"x"}
    stopped = await one.generate(ask("Say it", body=b'{"max_tokens":1000,"stop":["e"]}'))
    assert stopped.finish == "stop"
    assert "e" not in decode_message(stopped.message).content
    short = await one.generate(ask("Say it", body=b'{"max_tokens":3}'))
    assert (short.finish, short.usage.output_tokens) == ("length", 3)
    with pytest.raises(CallError) as caught:
        await one.generate(ask("hello world " * 3000))
    assert caught.value.fault.kind == "context_overflow"
    await one.stop()
