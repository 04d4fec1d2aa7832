"""Answers as messages: vLLM's parsers find reasoning and tool calls in sampled text."""

from __future__ import annotations

import logging
import re
from typing import Any

from gymq.wire.json_types import JsonObject
from gymq.wire.message import Function, Message, ToolCall

from ..tool_calls import distinct, new_call_id
from .engine import Sampled
from .load import EngineLoad
from .options import VllmOptions
from .sampling import Body

log = logging.getLogger(__name__)

#: Text of a chat template whose tool calls are JSON between tags, as Hermes's and Qwen's are.
_HERMES = re.compile(r"<tool_call>\s*(?:\\n)?\s*\{.{0,40}name", re.S)

#: Marks that begin a tool call; text with a mark in which the parser finds no call is a malformed call.
_MARKS = (
    "<tool_call>",
    "<function=",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<|tool_call",
    "<\uff5ctool\u2581calls\u2581begin\uff5c>",
)


class Parsers:
    """A model's parsers.

    Args:
        options: the parsers' names.
        tokenizer: the model's.
        model_config: vLLM's description of the model.
        load: counts malformed calls.

    Raises:
        Exception: vLLM does not know a parser, or it does not fit this tokenizer.
    """

    def __init__(self, options: VllmOptions, tokenizer: Any, model_config: Any, load: EngineLoad) -> None:
        from vllm.parser import ParserManager

        tool, reasoning = options.parsers()
        if not tool:
            template = getattr(tokenizer, "chat_template", None) or ""
            tool = "hermes" if isinstance(template, str) and _HERMES.search(template) else "none"
        self.names = (tool, reasoning)
        self._tokenizer = tokenizer
        self._config = model_config
        self._class: Any = ParserManager.get_parser(
            tool_parser_name=None if tool == "none" else tool,
            reasoning_parser_name=None if reasoning == "none" else reasoning,
            enable_auto_tools=tool != "none",
            model_name=options.model,
            is_harmony=getattr(model_config.hf_config, "model_type", "") == "gpt_oss",
            tokenizer=tokenizer,
        )
        self._load = load

    def adjust(self, chat: Any) -> Any:
        """Return a `ChatCompletionRequest` that makes the engine sample text that the parsers can read."""
        if self._class is None:
            return chat
        adjusted: Any = self._make(chat, {}).adjust_request(chat)
        return adjusted

    def message(self, prompt: list[int], sampled: Sampled, body: Body) -> Message:
        """Return the sampled message.

        A malformed tool call stays in the message as text; arguments of invalid JSON are passed on, and the tool's result says
        what is wrong.

        Args:
            prompt: the prompt's token ids.
            sampled: the answer.
            body: the request's fields.
        """
        text = sampled.text if body.params.detokenize else self._decode(sampled, body)
        if self._class is None:
            return Message("assistant", text)
        parser = self._make(body.chat, body.template)
        parser.set_prompt_token_ids(prompt)
        try:
            reasoning, content, parsed = parser.parse(
                text, body.chat, enable_auto_tools=True, model_output_token_ids=sampled.ids
            )
        except Exception as error:  # a parser's defect, or one that raises where the model's format is broken
            self._malformed(f"{type(error).__name__}: {error}")
            return Message("assistant", text)
        sampled.reasoning = parser.count_reasoning_tokens(sampled.ids)
        calls = [ToolCall(c.id or new_call_id(), Function(c.name, c.arguments or "{}")) for c in parsed or ()]
        if not calls and body.chat.tools and any(mark in (content or "") for mark in _MARKS):
            self._malformed("it stands in the message as text")
        return Message("assistant", content or (None if calls else ""), reasoning or None, distinct(calls))

    def _malformed(self, why: str) -> None:
        if not self._load.malformed:
            log.warning("a tool call that the parser %s cannot read: %s (said once)", self.names[0], why[:200])
        self._load.malformed += 1

    def _decode(self, sampled: Sampled, body: Body) -> str:
        ids = sampled.ids
        if sampled.finish == "stop" and ids and not body.params.include_stop_str_in_output:
            ids = ids[:-1]  # the token that ended it is no part of the message
        text: str = self._tokenizer.decode(ids, skip_special_tokens=body.params.skip_special_tokens)
        return text

    def _make(self, chat: Any, template: JsonObject) -> Any:
        return self._class(self._tokenizer, chat.tools, chat_template_kwargs=template, model_config=self._config)
