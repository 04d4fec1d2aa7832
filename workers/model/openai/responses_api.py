"""The form of OpenAI's Responses: chat messages become input items, output items become one chat message.

Nothing is kept on the server (`store` is false): the whole conversation is sent each time, without the reasoning.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gymq.api.backend import Request
from gymq.wire.calls import Usage
from gymq.wire.message import Function, Message, ToolCall, encode_message

from ..tool_calls import distinct, finish_reason, new_call_id
from .chat_api import Answer, InterruptedAnswer, MalformedAnswer, count, failed, named_ids

PATH = "/responses"

#: What an incomplete answer's reason means.
_INCOMPLETE = {"max_output_tokens": "length", "content_filter": "content_filter"}


class _Logprob(msgspec.Struct):
    logprob: float
    token: str = ""


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""
    refusal: str = ""
    logprobs: list[_Logprob] | None = None


class _Item(msgspec.Struct):
    type: str
    content: list[_Part] | None = None
    summary: list[_Part] | None = None
    call_id: str | None = None
    name: str = ""
    arguments: str | dict[str, Any] = "{}"
    # NeMo Gym's model servers hang the token ids on the last item.
    prompt_token_ids: list[int] | None = None
    generation_token_ids: list[int] | None = None
    generation_log_probs: list[float] | None = None


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    output: list[_Item] | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Response)
_encoder = msgspec.json.Encoder()


def request_body(head: bytes, request: Request) -> bytes:
    """Encode a request's body.

    Args:
        head: `{"model":"...",`.
        request: the conversation and the other fields, both in the chat form.
    """
    fields = request_fields(msgspec.json.decode(request.body))
    fields["input"] = [item for message in request.messages for item in input_items(message)]
    return head + _encoder.encode(fields)[1:]


def request_fields(chat: dict[str, Any]) -> dict[str, Any]:
    """Translate a chat request's fields; those that Responses does not have are left for the server to refuse.

    Args:
        chat: the fields but for `model` and `messages`.
    """
    fields: dict[str, Any] = {"store": False}
    text: dict[str, Any] = {}
    for name, value in chat.items():
        if name in ("max_tokens", "max_completion_tokens"):
            fields["max_output_tokens"] = value
        elif name == "reasoning_effort":
            fields["reasoning"] = {"effort": value, **chat.get("reasoning", {})}
        elif name == "reasoning":
            fields.setdefault("reasoning", value)
        elif name == "response_format":
            text["format"] = {"type": value["type"], **value["json_schema"]} if value.get("json_schema") else value
        elif name == "verbosity":
            text["verbosity"] = value
        elif name == "tools":
            fields["tools"] = [_flat_tool(tool) for tool in value]
        elif name == "tool_choice":
            named = value.get("function") if isinstance(value, dict) else None
            fields["tool_choice"] = {"type": "function", "name": named["name"]} if named else value
        elif name == "logprobs":
            if value:
                fields["include"] = [*chat.get("include", ()), "message.output_text.logprobs"]
        elif name == "include":
            fields.setdefault("include", value)
        else:
            fields[name] = value
    if text:
        fields["text"] = {**fields.get("text", {}), **text}
    return fields


def input_items(message: Message) -> list[dict[str, Any]]:
    """The input items that stand for one chat message."""
    if message.role == "tool":
        output = message.content if isinstance(message.content, str) else _parts(message)
        return [{"type": "function_call_output", "call_id": message.tool_call_id or "", "output": output}]
    items: list[dict[str, Any]] = []
    if message.content or not message.tool_calls:
        content = message.content or "" if isinstance(message.content, str | None) else _parts(message)
        items.append({"type": "message", "role": message.role, "content": content})
    for call in message.tool_calls:
        function = call.function
        items.append({"type": "function_call", "call_id": call.id, "name": function.name, "arguments": function.arguments})
    return items


def read_answer(data: bytes) -> Answer:
    """Read a server's answer.

    Raises:
        msgspec.DecodeError: it is no JSON, or (`msgspec.ValidationError`) of other types.
        Nonsense: it is no answer.
        BrokenOff: the server says that it failed.
    """
    response = _decoder.decode(data)
    if response.error is not None:
        raise failed(response.error)
    if response.output is None:
        raise MalformedAnswer("no output")
    finish = "stop"
    if response.status == "incomplete":
        reason = response.incomplete_details.reason if response.incomplete_details is not None else None
        finish = _INCOMPLETE.get(reason or "max_output_tokens", "stop")
    elif response.status not in ("completed", None):
        raise InterruptedAnswer(f"the server broke its answer off: status {response.status!r}")
    texts: list[str] = []
    reasons: list[str] = []
    calls: list[ToolCall] = []
    logprobs: list[_Logprob] = []
    ids = _Item("")
    for item in response.output:
        if item.type == "message":
            for part in item.content or ():
                texts.append(part.text or part.refusal)
                logprobs += part.logprobs or ()
        elif item.type == "function_call":
            arguments = item.arguments if isinstance(item.arguments, str) else _encoder.encode(item.arguments).decode()
            calls.append(ToolCall(item.call_id or new_call_id(), Function(item.name, arguments)))
        elif item.type == "reasoning":
            reasons += [part.text for part in item.content or item.summary or ()]
        if item.generation_token_ids is not None:
            ids = item
    distinct(calls)
    content = "".join(texts)
    message = Message("assistant", None if calls and not content else content, "\n".join(reasons) or None, calls)
    return Answer(
        encode_message(message),
        finish_reason(finish, bool(calls)),
        _usage(response.usage),
        response.model or "",
        ids.prompt_token_ids,
        ids.generation_token_ids or (named_ids([item.token for item in logprobs]) if logprobs else None),
        ids.generation_log_probs or ([item.logprob for item in logprobs] or None),
    )


def _flat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A chat tool as Responses wants it; there a tool is strict unless it says otherwise, in chat it is the reverse."""
    function = tool.get("function")
    return {"type": "function", "strict": False, **function} if function else tool


def _parts(message: Message) -> list[dict[str, Any]]:
    """Content parts by their names in Responses; parts of other kinds go as they are."""
    text = "output_text" if message.role == "assistant" else "input_text"
    parts: list[dict[str, Any]] = []
    for part in message.content if isinstance(message.content, list) else ():
        if part.get("type") == "text":
            parts.append({"type": text, "text": part.get("text") or ""})
        elif part.get("type") == "image_url":
            image = part["image_url"]
            parts.append({"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto"})
        elif part.get("type") == "file":
            parts.append({"type": "input_file", **part["file"]})
        else:
            parts.append(part)
    return parts


def _usage(usage: _Usage | None) -> Usage:
    if usage is None:
        return Usage()
    given, made = usage.input_tokens_details, usage.output_tokens_details
    return Usage(
        count(usage.input_tokens),
        count(usage.output_tokens),
        count(given.cached_tokens) if given is not None else 0,
        count(made.reasoning_tokens) if made is not None else 0,
    )
