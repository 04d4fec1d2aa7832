"""vLLM's own parsers on texts as models write them; no engine."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gymq_workers.model.vllm.engine import Sampled
from gymq_workers.model.vllm.load import EngineLoad
from gymq_workers.model.vllm.options import VllmOptions
from gymq_workers.model.vllm.parsers import Parsers
from gymq_workers.model.vllm.sampling import Bodies

from gymq.wire.message import Message

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def parsers(tokenizer: Any, tool: str = "", reasoning: str = "") -> Parsers:
    config = types.SimpleNamespace(hf_config=types.SimpleNamespace(model_type="qwen2"), hf_text_config=None, model="m")
    return Parsers(VllmOptions("m", (), {}, tool, reasoning), tokenizer, config, EngineLoad())


def read(made: Parsers, tokenizer: Any, text: str, tools: bool = True) -> Message:
    body = Bodies(made.adjust, True).read(msgspec.json.encode({"tools": TOOLS} if tools else {}))
    ids = tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
    return made.message([1, 2], Sampled(ids, [0.0] * len(ids), [], "stop"), body)


def test_the_chat_template_tells_hermes(tokenizer: Any) -> None:
    assert parsers(tokenizer).names == ("hermes", "none")


def test_without_a_parser_an_answer_is_its_text(tokenizer: Any) -> None:
    made = parsers(tokenizer, "none", "none")
    assert read(made, tokenizer, "All is well.") == Message("assistant", "All is well.")


def test_text_and_several_calls_are_told_apart(tokenizer: Any) -> None:
    calls = ['{"name":"look","arguments":{}}', '{"name":"look","arguments":{"a":1}}']
    text = "Let me see.\n" + "\n".join(f"<tool_call>{call}</tool_call>" for call in calls)
    message = read(parsers(tokenizer), tokenizer, text)
    assert message.content == "Let me see.\n"
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [
        ("look", "{}"),
        ("look", '{"a": 1}'),
    ]
    assert len({call.id for call in message.tool_calls}) == 2


def test_reasoning_stands_apart_and_calls_behind_it_are_found(tokenizer: Any) -> None:
    made = parsers(tokenizer, "hermes", "deepseek_r1")
    message = read(made, tokenizer, '<think>It may rain.</think><tool_call>{"name":"look","arguments":{}}</tool_call>')
    assert message.reasoning == "It may rain."
    assert [call.function.name for call in message.tool_calls] == ["look"]
    # One that is not closed: all of it is reasoning.
    message = read(made, tokenizer, "<think>It may rain, or")
    assert (message.content, message.reasoning) == ("", "It may rain, or")


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name":"look"',
        '<tool_call>{"name":"look"}</tool_call>',
        "<tool_call>look()</tool_call>",
        "<tool_call></tool_call>",
    ],
)
def test_a_call_that_cannot_be_read_stands_as_text_and_is_counted(tokenizer: Any, text: str) -> None:
    made = parsers(tokenizer)
    message = read(made, tokenizer, f"<tool_call>{text}")
    assert message.tool_calls == []
    assert message.content == f"<tool_call>{text}"
    assert made._load.malformed == 1


def test_a_tag_in_an_answer_to_one_who_has_no_tools_is_no_call(tokenizer: Any) -> None:
    made = parsers(tokenizer)
    assert "look" in (read(made, tokenizer, "I would say look <tool_call", tools=False).content or "")
    assert made._load.malformed == 0
