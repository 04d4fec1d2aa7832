"""The form of OpenAI's chat completions: a request is joined from bytes, an answer is decoded once."""

from __future__ import annotations

from typing import Any

import msgspec

from gymq.api.backend import Request
from gymq.wire.calls import Usage
from gymq.wire.message import Function, Message, ToolCall, encode_message, without_reasoning

from ..tool_calls import distinct, finish_reason, new_call_id

PATH = "/chat/completions"

#: How an answer ended, by the server's word for it; any other word counts as `stop`.
_FINISHES = {"stop": "stop", "tool_calls": "tool_calls", "length": "length", "content_filter": "content_filter"}

#: Words for an answer that the server itself broke off (vLLM and SGLang when weights change, OpenRouter); no end of the
#: model's own, so it is asked again.
_BROKEN_OFF = frozenset({"abort", "error"})


class MalformedAnswer(Exception):
    """The server's answer makes no sense; the text is one line."""


class InterruptedAnswer(Exception):
    """The server broke its answer off, or says in a 200 that it failed; worth another try unless `status` says no.

    Args:
        message: one line.
        status: the HTTP status that the server should have sent.
    """

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class Answer(msgspec.Struct):
    """What a server answered, whichever form it used.

    Args:
        message: the assistant's message, encoded.
        finish: `stop`, `tool_calls`, `length` or `content_filter`.
        usage: its tokens.
        model: what the server calls the model.
        prompt: the prompt's token ids, when given.
        output: the sampled token ids, when given.
        logprobs: one per sampled token, when given.
        versions: which policy sampled them, as in `gymq.call.Tokens`.
        stopped: the text at which it stopped, when that is told.
    """

    message: bytes
    finish: str
    usage: Usage
    model: str = ""
    prompt: list[int] | None = None
    output: list[int] | None = None
    logprobs: list[float] | None = None
    versions: list[tuple[int, int]] = []
    stopped: str = ""


class _Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    # NeMo Gym's model servers hang the token ids on the message.
    prompt_token_ids: list[int] | None = None
    generation_token_ids: list[int] | None = None
    generation_log_probs: list[float] | None = None


class _Logprob(msgspec.Struct):
    logprob: float
    token: str = ""


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Completion)
_encoder = msgspec.json.Encoder()


def request_body(head: bytes, request: Request) -> bytes:
    """Join a request's body.

    Args:
        head: `{"model":"...",`.
        request: the conversation and the other fields.
    """
    fields = request.body.strip()[1:-1].strip()
    messages = b",".join(request.messages.encoded)
    if b'"reasoning":' in messages:
        messages = b",".join([without_reasoning(turn) for turn in request.messages.encoded])
    if fields:
        return b"".join((head, fields, b',"messages":[', messages, b"]}"))
    return b"".join((head, b'"messages":[', messages, b"]}"))


def read_answer(data: bytes) -> Answer:
    """Read a server's answer.

    Raises:
        msgspec.DecodeError: it is no JSON, or (`msgspec.ValidationError`) of other types.
        Nonsense: it is no answer.
        BrokenOff: the server says that it failed.
    """
    completion = _decoder.decode(data)
    if not completion.choices:
        if completion.error is not None:
            raise failed(completion.error)
        raise MalformedAnswer("no choices")
    choice = completion.choices[0]
    said = choice.message
    finish = choice.finish_reason or "stop"
    if finish in _BROKEN_OFF:
        raise InterruptedAnswer(f"the server broke its answer off: finish_reason {finish!r}")
    calls = distinct([_tool_call(call) for call in said.tool_calls or ()])
    content = said.content
    if isinstance(content, list) and not all(isinstance(part.get("text", ""), str) for part in content):
        raise MalformedAnswer("a content part's text is no text")
    if content is None and said.refusal:
        content = said.refusal
    if content is None and not calls:
        content = ""  # a message with neither is refused when it is sent back
    message = Message("assistant", content, said.reasoning or said.reasoning_content or None, calls)
    prompt = completion.prompt_token_ids or said.prompt_token_ids
    output = choice.token_ids if choice.token_ids is not None else said.generation_token_ids
    logprobs = said.generation_log_probs
    listed = choice.logprobs.content if choice.logprobs is not None else None
    if listed:
        logprobs = [item.logprob for item in listed]
        if output is None:
            output = named_ids([item.token for item in listed])
    return Answer(
        encode_message(message),
        finish_reason(_FINISHES.get(finish, "stop"), bool(calls)),
        _usage(completion.usage),
        completion.model or "",
        prompt,
        output,
        logprobs,
    )


def named_ids(tokens: list[str]) -> list[int] | None:
    """Token ids from vLLM's `token_id:17` (its `return_tokens_as_token_ids`), or None where tokens are text."""
    if not tokens[0].startswith("token_id:"):
        return None
    try:
        return [int(token[9:]) for token in tokens]
    except ValueError:
        return None


def count(tokens: int | None) -> int:
    """A number of tokens as the server counted them.

    Raises:
        Nonsense: nobody can have counted that.
    """
    if tokens is None:
        return 0
    if not 0 <= tokens < 1 << 40:
        raise MalformedAnswer(f"usage of {str(tokens)[:20]} tokens")
    return tokens


def failed(error: Any) -> InterruptedAnswer:
    """An error that stands in an answer with status 200, as OpenRouter and the Responses API send it."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    else:
        status = {"server_error": 500, "rate_limit_exceeded": 429, None: 500}.get(code if isinstance(code, str) else None, 400)
    return InterruptedAnswer(error_text(_encoder.encode({"error": error})), status)


def error_text(data: bytes) -> str:
    """The server's own words in an error's body, as one line.

    Args:
        data: the body, in OpenAI's, vLLM's or FastAPI's form; any other text is taken as it is.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return " ".join(data[:2000].decode("utf-8", "replace").split())
    error: Any = value
    if isinstance(value, dict):
        error = next((value[key] for key in ("error", "detail", "message") if value.get(key)), value)
    if isinstance(error, list):  # FastAPI's: each says where and what, and repeats the input, which we leave out
        words = [str(item.get("msg", "")) for item in error if isinstance(item, dict)]
    elif isinstance(error, dict):
        words = [str(error[key]) for key in ("message", "code", "type") if error.get(key)]
        # The code and the type add to the message only where they are words.
        words = [word for word in words if not word.isdigit()]
    else:
        words = [str(error)]
    return " ".join("; ".join(words).split())


def _tool_call(call: _ToolCall) -> ToolCall:
    arguments = call.function.arguments
    if isinstance(arguments, dict):
        arguments = _encoder.encode(arguments).decode()
    return ToolCall(call.id or new_call_id(), Function(call.function.name, "{}" if arguments is None else arguments))


def _usage(usage: _Usage | None) -> Usage:
    if usage is None:
        return Usage()
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        count(usage.prompt_tokens),
        count(usage.completion_tokens),
        count(prompt.cached_tokens) if prompt is not None else 0,
        count(completion.reasoning_tokens) if completion is not None else 0,
    )
