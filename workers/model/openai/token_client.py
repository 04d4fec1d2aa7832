"""Calls in token ids: each prompt goes on from the ids that the server has sampled, and only new text is tokenized."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from gymq.api.backend import Request
from gymq.errors import UsageError, one_line
from gymq.wire.calls import Generated
from gymq.wire.message import Message, encode_message

from ..tokens.chat_template import ChatTemplate
from ..tokens.token_log import TokenLog
from ..tokens.token_prompt import Prompt
from . import generate_api
from .answer import Answer

#: Bytes of token ids and texts that are kept.
MAX_BYTES = 256 * 1024 * 1024


class TokenClient:
    """The tokenizer and the token log of a model that is asked in token ids.

    Args:
        model: the model's name on the server.
        tokenizer: its tokenizer, a folder or a name that `transformers` knows.

    Raises:
        UsageError: `transformers` is not installed.
    """

    def __init__(self, model: str, tokenizer: str) -> None:
        if find_spec("transformers") is None:
            raise UsageError("model openai: api generate needs `pip install transformers`")
        self._model = model
        self._tokenizer = tokenizer
        self._log: TokenLog | None = None
        self._renderer: ChatTemplate | None = None

    def start(self) -> None:
        """Load the tokenizer.

        Raises:
            UsageError: it cannot be loaded.
        """
        from transformers import AutoTokenizer, GenerationConfig

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(self._tokenizer)
        except (OSError, ValueError) as error:
            raise UsageError(one_line(f"model openai: no tokenizer at {self._tokenizer!r}: {error}")) from None
        try:
            ends = GenerationConfig.from_pretrained(self._tokenizer).eos_token_id
        except OSError:
            ends = None
        self.use(ChatTemplate(tokenizer, None, ends))

    def use(self, renderer: ChatTemplate) -> None:
        """Use a chat template that is loaded already."""
        self._renderer = renderer
        self._log = TokenLog(renderer, MAX_BYTES)

    async def prompt(self, request: Request) -> tuple[Prompt, bytes]:
        """Return a call's prompt, and the body of the request for its answer.

        Raises:
            CallError: `model`.
        """
        assert self._log is not None, "prompt before start"
        prompt = await self._log.prompt(request)
        return prompt, generate_api.request_body(self._model, prompt.ids.tolist(), request)

    def question(self, request: Request, prompt: Prompt, answer: Answer) -> bytes:
        """Return the body of the request for an answer's message; empty: it has no ids but the one that ends it.

        Args:
            request: the call.
            prompt: its prompt.
            answer: the sampled ids.
        """
        assert self._renderer is not None
        output = answer.output or []
        if answer.finish == "stop" and output and output[-1] in self._renderer.ends:
            output = output[:-1]
        return generate_api.derender_body(self._model, prompt.ids.tolist(), output, answer.finish, request) if output else b""

    def answered(self, request: Request, prompt: Prompt, answer: Answer, read: Answer | None) -> Generated:
        """Join an answer and its message, and remember its ids.

        Args:
            request: the call.
            prompt: its prompt.
            answer: the sampled ids.
            read: the answer with the message; None where `question` was empty.
        """
        assert self._log is not None
        output = answer.output or []
        message = encode_message(Message("assistant", "")) if read is None else generate_api.cut(read.message, answer.stopped)
        called = read is not None and read.finish == "tool_calls"
        tokens = prompt.tokens(output, answer.logprobs or [], answer.versions)
        self._log.answered(request, prompt, output, message)
        finish = "tool_calls" if called and answer.finish == "stop" else answer.finish
        return Generated(message, finish, answer.usage, tokens, answer.model)
