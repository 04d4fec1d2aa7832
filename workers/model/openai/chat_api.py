"""OpenAI's chat completions: requests are joined from encoded messages, answers are decoded once."""

from __future__ import annotations

from typing import Any

import msgspec

from gymq.api.backend import Request
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Function, Message, ToolCall, encode_message, without_reasoning

from ..tool_calls import distinct, finish_reason, new_call_id
from .answer import (
    Answer,
    Logprobs,
    MalformedAnswer,
    SampledIds,
    TokenId,
    WireUsage,
    check_finish,
    encode_arguments,
    named_ids,
    read_usage,
    server_error,
)

PATH = "/chat/completions"

#: Finish reasons that are handed on; any other one counts as `stop`.
_FINISHES = {"stop": "stop", "tool_calls": "tool_calls", "length": "length", "content_filter": "content_filter"}


class _Function(msgspec.Struct):
    name: str
    arguments: str | JsonObject | None = None


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(SampledIds):
    content: str | list[JsonObject] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[TokenId] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    model: str | None = None
    prompt_token_ids: list[TokenId] | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Completion)


def request_body(head: bytes, request: Request) -> bytes:
    """Return a request's body.

    Args:
        head: its beginning, `{"model":"...",`.
        request: the conversation and the other fields.
    """
    fields = request.body.strip()[1:-1].strip()
    messages = b",".join(request.messages.encoded)
    if b'"reasoning":' in messages:
        messages = b",".join([without_reasoning(message) for message in request.messages.encoded])
    if fields:
        return b"".join((head, fields, b',"messages":[', messages, b"]}"))
    return b"".join((head, b'"messages":[', messages, b"]}"))


def read_answer(data: bytes) -> Answer:
    """Read a server's answer.

    Raises:
        msgspec.DecodeError: it is no JSON, or (`msgspec.ValidationError`) of other types.
        MalformedAnswer: it is no answer.
        InterruptedAnswer: the server says that it failed, or broke the answer off.
    """
    completion = _decoder.decode(data)
    if not completion.choices:
        if completion.error is not None:
            raise server_error(completion.error)
        raise MalformedAnswer("no choices")
    choice = completion.choices[0]
    made = choice.message
    finish = check_finish(choice.finish_reason)
    calls = distinct([_tool_call(call) for call in made.tool_calls or ()])
    content = made.content
    if isinstance(content, list) and not all(isinstance(part.get("text", ""), str) for part in content):
        raise MalformedAnswer("a content part's text is no text")
    if content is None and made.refusal:
        content = made.refusal
    if content is None and not calls:
        content = ""  # a message with neither is refused when it is sent back
    message = Message("assistant", content, made.reasoning or made.reasoning_content or None, calls)
    output = choice.token_ids if choice.token_ids is not None else made.generation_token_ids
    logprobs = made.generation_log_probs
    listed = choice.logprobs.content if choice.logprobs is not None else None
    if listed:
        logprobs = [item.logprob for item in listed]
        if output is None:
            output = named_ids(listed)
    return Answer(
        encode_message(message),
        finish_reason(_FINISHES.get(finish, "stop"), bool(calls)),
        read_usage(completion.usage),
        completion.model or "",
        completion.prompt_token_ids or made.prompt_token_ids,
        output,
        logprobs,
    )


def _tool_call(call: _ToolCall) -> ToolCall:
    arguments = call.function.arguments
    return ToolCall(
        call.id or new_call_id(), Function(call.function.name, "{}" if arguments is None else encode_arguments(arguments))
    )
