"""A request's fields as vLLM takes them, checked and translated by vLLM's own chat request."""

from __future__ import annotations

from typing import Any

import msgspec
from cachetools import LRUCache

from gymq.errors import CallError, one_line
from gymq.wire.json_types import JsonObject

from ..sampling_fields import PROMPT_FIELDS, SAMPLING_FIELDS, SERVER_FIELDS

#: Fields of chat completions that vLLM's chat request translates to sampling parameters.
_SAMPLING = SAMPLING_FIELDS | {"max_completion_tokens", "response_format", "structured_outputs"}

#: Request bodies that are kept; the rollouts of a run mostly share one.
_KEPT = 1024


class Body:
    """A request's fields, checked.

    Args:
        chat: vLLM's `ChatCompletionRequest` of them, without messages.
        params: vLLM's `SamplingParams`, final but for `max_tokens`.
        most: tokens of the answer at most; None: no limit.
        template: arguments of the chat template.
    """

    __slots__ = ("chat", "most", "params", "template")

    def __init__(self, chat: Any, params: Any, most: int | None, template: JsonObject) -> None:
        self.chat = chat
        self.params = params
        self.most = most
        self.template = template

    def params_for(self, prompt: int, longest: int) -> Any:
        """Return the `SamplingParams` of one call.

        Args:
            prompt: its prompt's tokens.
            longest: tokens of prompt and answer together, at most.

        Raises:
            CallError: `context_overflow`: there is no room for an answer.
        """
        left = longest - prompt
        if left < 1:
            raise CallError("context_overflow", f"the prompt has {prompt} tokens; the model takes {longest}, answer included")
        params = self.params.clone()
        params.max_tokens = left if self.most is None else min(self.most, left)
        params.min_tokens = min(params.min_tokens, params.max_tokens)
        return params


class Bodies:
    """The request bodies of the calls so far, each read once.

    Args:
        adjust: see `Parsers.adjust`.
        on_cpu: whether the engine runs on a CPU.
    """

    def __init__(self, adjust: Any, on_cpu: bool) -> None:
        self._adjust = adjust
        self._on_cpu = on_cpu
        self._kept: LRUCache[bytes, Body] = LRUCache(_KEPT)

    def read(self, data: bytes) -> Body:
        """Return a body, checked.

        Raises:
            CallError: `model`: a field is unknown, or vLLM does not take its value.
        """
        body = self._kept.get(data)
        if body is None:
            body = self._read(data)
            self._kept[data] = body
        return body

    def _read(self, data: bytes) -> Body:
        from pydantic import ValidationError
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        fields: JsonObject = {name: value for name, value in msgspec.json.decode(data).items() if value is not None}
        for name in sorted(fields):
            if name not in _SAMPLING | PROMPT_FIELDS | SERVER_FIELDS:
                raise CallError(
                    "model", f"vLLM: sampling field {name!r} is unknown; remove it from the row's or the run's sampling"
                )
        if self._on_cpu and fields.get("seed") is not None:
            raise CallError("model", "vLLM: seed kills the engine on a CPU; remove it from the row's or the run's sampling")
        chat_fields = {name: value for name, value in fields.items() if name in _SAMPLING or name in ("tools", "tool_choice")}
        if "parallel_tool_calls" in fields and "tools" in fields:
            chat_fields["parallel_tool_calls"] = fields["parallel_tool_calls"]
        if not chat_fields.get("tools"):
            chat_fields.pop("tools", None)
            chat_fields.pop("tool_choice", None)
        try:
            chat = self._adjust(ChatCompletionRequest.model_validate(chat_fields | {"messages": []}))
            params = chat.to_sampling_params(1 << 30, {})
        except (ValidationError, VLLMClientError, ValueError, TypeError, NotImplementedError) as error:
            raise CallError("model", f"vLLM: {_why(error)}") from None
        params.output_kind = RequestOutputKind.FINAL_ONLY
        params.logprobs, params.flat_logprobs = 0, True
        # Text is decoded as it is sampled only where a string may end it; otherwise once, at the end.
        params.detokenize = bool(params.stop or params.bad_words)
        params.skip_special_tokens = chat.skip_special_tokens
        most = fields.get("max_completion_tokens", fields.get("max_tokens"))
        return Body(chat, params, most, fields.get("chat_template_kwargs") or {})


def _why(error: Exception) -> str:
    """Return an error about a field in one line."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return one_line(str(error))
    first = errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    return one_line(f"sampling field {where!r}: {reason}" if where else reason)
