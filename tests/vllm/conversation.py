"""A conversation with a model that samples what a test wants: the calls as a backend makes them, and their records."""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from typing import Any

import msgspec
from gymq_workers.agent.record import call_record
from gymq_workers.model.tokens.chat_template import ChatTemplate
from gymq_workers.model.tokens.token_log import TokenLog
from gymq_workers.model.tokens.token_prompt import Prompt

from gymq.api.backend import Request
from gymq.wire.calls import Generated, Reply, Tokens, Usage
from gymq.wire.message import Conversation, Function, Message, ToolCall, decode_message, encode_message
from gymq.wire.record import encode_call
from gymq.wire.recorded_tokens import past
from tests.vllm.templates import tokenizer

_THOUGHT = re.compile(r"(?:<think>)?(.*?)</think>(.*)", re.S)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)


@cache
def _renderer(name: str) -> ChatTemplate:
    return ChatTemplate(tokenizer(name), ends=[tokenizer(name).convert_tokens_to_ids("<|endoftext|>")])


@lru_cache(10_000)
def _encode(name: str, text: str) -> list[int]:
    ids: list[int] = tokenizer(name).encode(text, add_special_tokens=False)
    return ids


class Talk:
    """One rollout.

    Args:
        name: the template's.
        body: the request's fields.
    """

    def __init__(self, name: str, body: dict[str, Any] | None = None) -> None:
        self.name = name
        self.tokenizer = tokenizer(name)
        self.renderer = _renderer(name)
        self.end: int = self.tokenizer.eos_token_id
        self.body = json.dumps(body or {}).encode()
        self.turns: list[bytes] = []
        self.records: list[bytes] = []
        self.prompts: list[Prompt] = []
        self.outputs: dict[int, list[int]] = {}
        self.loads = 0
        self.move()

    def move(self) -> None:
        """From now on another replica answers."""
        self.log = TokenLog(self.renderer, 1 << 20)

    def say(self, role: str, content: Any, **fields: Any) -> None:
        """Append a message of somebody else."""
        self.turns.append(encode_message(Message(role, content, **fields)))

    def request(self) -> Request:
        """The next call's request."""

        async def history() -> list[tuple[int, Tokens]]:
            self.loads += 1
            return past(self.records, 1000)

        return Request("r.0.0", "e", Conversation(list(self.turns)), self.body, history=history)

    def ids(self, text: str, piece: int = 1000) -> list[int]:
        """Tokenize piece by piece, so that it comes out otherwise than a tokenizer would have it."""
        pieces = re.findall(rf"<[^<>\s]*>|.{{1,{piece}}}", text, re.S)
        return [id for each in pieces for id in _encode(self.name, each)]

    async def answer(self, output: list[int], message: Message | None = None) -> Prompt:
        """Make a prompt, and let the model sample an output."""
        request = self.request()
        prompt = await self.log.prompt(request)
        encoded = encode_message(message or self.parse(len(self.turns), output))
        self.log.answered(request, prompt, output, encoded)
        tokens = prompt.tokens(output, [-1.0] * len(output), [(0, len(self.prompts))])
        step = len(self.prompts) + 1
        answer = Generated(encoded, "stop", Usage(), tokens)
        self.records.append(
            encode_call(call_record("generate", step, 0.0, Reply(0, 1.0, 2.0, "w"), answer=answer, message=len(self.turns)))
        )
        self.prompts.append(prompt)
        self.outputs[len(self.turns)] = output
        self.turns.append(encoded)
        return prompt

    def parse(self, index: int, output: list[int]) -> Message:
        """What a server's parsers would make of an output, which becomes the message with an index."""
        ids = output[:-1] if output[-1:] and output[-1] in self.renderer.ends else output
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        message = Message("assistant", text)
        if self.name in ("qwen3", "r1") and (found := _THOUGHT.fullmatch(text)):
            message.reasoning, message.content = found[1].strip("\n"), found[2]
        if self.name == "llama" and text.lstrip().startswith('{"name"'):
            self._calls(message, index, [text], "parameters")
        elif self.name in ("chatml", "qwen3"):
            self._calls(message, index, _CALL.findall(text), "arguments")
        return message

    def _calls(self, message: Message, index: int, found: list[str], arguments: str) -> None:
        try:
            calls = [json.loads(each) for each in found]
            message.tool_calls = [
                ToolCall(f"c{index}.{n}", Function(each["name"], json.dumps(each[arguments]))) for n, each in enumerate(calls)
            ]
        except (ValueError, KeyError, TypeError):
            return
        if calls:
            before = message.text.partition("<tool_call>")[0].strip()
            message.content = (before or None) if arguments == "arguments" else None

    def message(self, index: int) -> Message:
        """A message of the conversation."""
        return decode_message(self.turns[index % len(self.turns)])

    def record(self) -> dict[str, Any]:
        """The finished rollout, as far as its token ids are concerned."""
        return {"calls": [msgspec.json.decode(each) for each in self.records]}

    def text(self, ids: Any) -> str:
        """The text of ids, special tokens and all."""
        decoded: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return decoded
