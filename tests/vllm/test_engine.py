"""The backend `vllm` with a real engine."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest

from gymq.errors import CallError
from gymq.wire.message import Message
from tests.vllm.asking import Scorer, floats, ints, request, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: A random model would write blanks for ever where JSON allows them.
ENGINE = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}

TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


async def refused(backend: Any, **body: Any) -> str:
    with pytest.raises(CallError) as caught:
        await backend.generate(request("Hello", **body))
    assert caught.value.fault.kind == "model"
    assert "\n" not in caught.value.fault.message
    return caught.value.fault.message


async def test_an_answer_brings_its_ids_logprobs_and_versions(backend: Any) -> None:
    answer = await backend.generate(request("What flows where?", max_tokens=24, ignore_eos=True))
    tokens = answer.tokens
    assert len(ints(tokens.output)) == len(floats(tokens.logprobs)) == 24
    assert all(logprob <= 0 for logprob in floats(tokens.logprobs))
    assert tokens.versions == [(0, 0)]
    assert answer.finish == "length"
    assert answer.usage.output_tokens == 24
    assert answer.usage.input_tokens == len(ints(tokens.prompt)) > 5
    text = backend._engine.tokenizer.decode(ints(tokens.output), skip_special_tokens=True)
    assert said(answer).content == text


async def test_logprobs_are_the_models_own_whatever_the_sampling(backend: Any, tiny: Path) -> None:
    scorer = Scorer(tiny)
    asked = [
        request(f"Question {i}: what does a worker do?", max_tokens=40, **sampling)
        for i, sampling in enumerate([{}, {"temperature": 0.5}, {"top_p": 0.8, "top_k": 20}, {"min_p": 0.02}] * 4)
    ]
    worst = 0.0
    for answer in await asyncio.gather(*(backend.generate(one) for one in asked)):
        tokens = answer.tokens
        scored = scorer.score(ints(tokens.prompt), ints(tokens.output))
        worst = max(worst, *(abs(a - b) for a, b in zip(scored, floats(tokens.logprobs), strict=True)))
    print(f"largest difference {worst:.2e}")
    assert worst <= 1e-3


async def test_with_a_grammar_logprobs_are_the_models_own_among_what_it_allows(backend: Any, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = backend._engine.tokenizer
    pieces = {id: tokenizer.decode([id]) for id in range(len(tokenizer))}
    numbers = [piece for piece in pieces.values() if re.fullmatch("[0-9]{2}", piece)]
    answer = await backend.generate(request("A number?", structured_outputs={"choice": numbers}, max_tokens=5))
    tokens = answer.tokens
    # A number may also be said in two tokens.
    allowed = [id for id, piece in pieces.items() if piece in numbers or piece in {number[0] for number in numbers}]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32").eval()
        logits = model(torch.tensor([ints(tokens.prompt)])).logits[0, -1].float()
    expected = torch.log_softmax(logits[allowed], 0)[allowed.index(ints(tokens.output)[0])]
    assert abs(floats(tokens.logprobs)[0] - float(expected)) <= 1e-3


async def test_the_engine_scores_its_own_answers_alike(backend: Any) -> None:
    from vllm import SamplingParams

    answer = await backend.generate(request("Which keys are there?", max_tokens=64, ignore_eos=True))
    prompt, output = ints(answer.tokens.prompt), ints(answer.tokens.output)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    async for scored in backend._engine._llm.generate({"prompt_token_ids": prompt + output}, params, "score"):
        found = [scored.prompt_logprobs[len(prompt) + i][one].logprob for i, one in enumerate(output)]
    assert max(abs(a - b) for a, b in zip(found, floats(answer.tokens.logprobs), strict=True)) <= 1e-3


async def test_a_second_turn_finds_the_first_in_the_prefix_cache(backend: Any) -> None:
    first = "Tell me of " + ", ".join(f"thing number {i}" for i in range(60))
    answer = await backend.generate(request(first, max_tokens=8, ignore_eos=True))
    again = await backend.generate(request(first, Message("assistant", "Well."), "And?", max_tokens=8))
    assert again.usage.cached_tokens > 0.5 * answer.usage.input_tokens
    assert backend.load()["prefix_hits"] > 0


async def test_a_tool_call_is_found_by_the_models_parser(backend: Any) -> None:
    forced = '<tool_call>\n{"name": "look", "arguments": {"city": "Rome"}}\n</tool_call>'
    answer = await backend.generate(request("Weather?", tools=[TOOL], structured_outputs={"choice": [forced]}, max_tokens=200))
    message = said(answer)
    assert answer.finish == "tool_calls"
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [("look", '{"city": "Rome"}')]
    assert message.content is None
    result = Message("tool", "Sunny.", tool_call_id=message.tool_calls[0].id)
    after = await backend.generate(request("Weather?", message, result, tools=[TOOL], max_tokens=5))
    assert "Sunny." in backend._engine.tokenizer.decode(ints(after.tokens.prompt))


async def test_a_malformed_tool_call_stands_as_text_and_is_counted(backend: Any) -> None:
    before = backend.load()["malformed_calls"]
    forced = '<tool_call>\n{"name": "look", "arguments": {"city": "Ro</tool_call>'
    answer = await backend.generate(request("Weather?", tools=[TOOL], structured_outputs={"choice": [forced]}, max_tokens=200))
    assert said(answer).tool_calls == []
    assert said(answer).content == forced
    assert answer.finish == "stop"
    assert backend.load()["malformed_calls"] == before + 1


async def test_an_answer_keeps_to_a_json_schema(backend: Any) -> None:
    import json

    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = await backend.generate(request("A number?", response_format=form, max_tokens=60))
    assert json.loads(said(answer).content)["n"] in (1, 2)


async def test_a_stop_string_ends_the_text_before_it_and_the_ids_behind_it(backend: Any) -> None:
    forced = {"choice": ["one two STOP three"]}
    answer = await backend.generate(request("Count", structured_outputs=forced, stop=["STOP"], max_tokens=50))
    assert said(answer).content == "one two "
    assert backend._engine.tokenizer.decode(ints(answer.tokens.output)).startswith("one two STOP")
    assert answer.finish == "stop"


async def test_a_prompt_that_does_not_fit_is_an_overflow(backend: Any) -> None:
    with pytest.raises(CallError) as caught:
        await backend.generate(request("word " * 4000))
    assert caught.value.fault.kind == "context_overflow"


async def test_an_answer_gets_what_is_left_of_the_context(backend: Any) -> None:
    each = len(backend._engine.tokenizer.encode(" word" * 100)) / 100
    answer = await backend.generate(request(" word" * int(1900 / each), ignore_eos=True))
    assert answer.finish == "length"
    assert answer.usage.input_tokens + answer.usage.output_tokens == 2048


async def test_a_cancelled_call_is_aborted_in_the_engine(backend: Any) -> None:
    asked = [asyncio.create_task(backend.generate(request(f"Go on {i}", ignore_eos=True, max_tokens=1900))) for i in range(8)]
    async with asyncio.timeout(60):
        while backend.load()["running"] < 8:
            await asyncio.sleep(0.01)
        for one in asked:
            one.cancel()
        assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*asked, return_exceptions=True))
        began = time.monotonic()
        await backend.generate(request("Hello", max_tokens=3))
    assert time.monotonic() - began < 10
    assert backend._engine._llm.get_num_unfinished_requests() == 0
    assert backend._engine.load.running <= 1


async def test_fields_that_vllm_does_not_take_are_refused_in_one_line(backend: Any) -> None:
    assert "'temprature'" in await refused(backend, temprature=1)
    assert "seed" in await refused(backend, seed=3)
    assert "top_p" in await refused(backend, top_p=7)
    assert "temperature" in await refused(backend, temperature="hot")
    assert "json_schema" in await refused(backend, response_format={"type": "json_schema"})
    await refused(backend, structured_outputs={"regex": "("})
    await refused(backend, tools=[{"type": "function"}])
    await refused(backend, stop=[""])
    assert (await backend.generate(request("Still here?", max_tokens=2, user="me", logprobs=True))).usage.output_tokens <= 2


async def test_an_image_before_a_model_for_text_is_refused_in_one_line(backend: Any) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    for message in (Message("user", [{"type": "text", "text": "Look: "}, image]), Message("tool", [image], tool_call_id="c")):
        with pytest.raises(CallError, match=r"^messages\[1\] has an image, and this model takes none$") as caught:
            await backend.generate(request("Hello", message))
        assert caught.value.fault.kind == "model"


async def test_bad_engine_arguments_are_one_line(tiny: Path) -> None:
    from gymq_workers.model.vllm.backend import VllmBackend

    from gymq.errors import GymqError

    for engine in ({"dtype": "float17"}, {"max_model_len": 10**6}, {"tensor_parallel_size": "many"}):
        with pytest.raises(GymqError) as caught:
            await VllmBackend(str(tiny), {"gpu": "none", "engine": engine}).start()
        print(caught.value)
        assert "\n" not in str(caught.value)
        assert str(tiny) in str(caught.value)
