"""OpenAI's Responses: chat messages become input items, output items become one chat message.

The server stores nothing (`store` is false): each request carries the whole conversation, without the reasoning.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gymq.api.backend import Request
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Function, Message, ToolCall, encode_message

from ..tool_calls import distinct, finish_reason, new_call_id
from .answer import (
    Answer,
    InterruptedAnswer,
    MalformedAnswer,
    SampledIds,
    TokenLogprob,
    WireUsage,
    encode_arguments,
    named_ids,
    read_usage,
    server_error,
)

PATH = "/responses"

#: Finish reasons by the reason of an incomplete answer.
_INCOMPLETE = {"max_output_tokens": "length", "content_filter": "content_filter"}


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""
    refusal: str = ""
    logprobs: list[TokenLogprob] | None = None


class _Item(SampledIds):
    type: str = ""
    content: list[_Part] | None = None
    summary: list[_Part] | None = None
    call_id: str | None = None
    name: str = ""
    arguments: str | JsonObject = "{}"


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    output: list[_Item] | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None
    usage: WireUsage | None = None
    model: str | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Response)
_encoder = msgspec.json.Encoder()


def request_body(head: bytes, request: Request) -> bytes:
    """Return a request's body.

    Args:
        head: its beginning, `{"model":"...",`.
        request: the conversation and the other fields, both in the chat form.
    """
    fields = request_fields(msgspec.json.decode(request.body))
    fields["input"] = [item for message in request.messages for item in input_items(message)]
    return head + _encoder.encode(fields)[1:]


def request_fields(chat: JsonObject) -> JsonObject:
    """Return a chat request's fields as Responses names them; unknown ones are kept, for the server to refuse.

    Args:
        chat: the fields but for `model` and `messages`.
    """
    fields: JsonObject = {"store": False}
    text: JsonObject = {}
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


def input_items(message: Message) -> list[JsonObject]:
    """Return the input items that stand for one chat message."""
    if message.role == "tool":
        output = message.content if isinstance(message.content, str) else _parts(message)
        return [{"type": "function_call_output", "call_id": message.tool_call_id or "", "output": output}]
    items: list[JsonObject] = []
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
        MalformedAnswer: it is no answer.
        InterruptedAnswer: the server says that it failed, or broke the answer off.
    """
    response = _decoder.decode(data)
    if response.error is not None:
        raise server_error(response.error)
    if response.output is None:
        raise MalformedAnswer("no output")
    finish = "stop"
    if response.status == "incomplete":
        reason = response.incomplete_details.reason if response.incomplete_details is not None else None
        finish = _INCOMPLETE.get(reason or "max_output_tokens", "stop")
    elif response.status not in ("completed", None):
        raise InterruptedAnswer(f"the server broke its answer off: status {response.status!r}")
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] = []
    ids = SampledIds()
    for item in response.output:
        if item.type == "message":
            for part in item.content or ():
                texts.append(part.text or part.refusal)
                logprobs += part.logprobs or ()
        elif item.type == "function_call":
            calls.append(ToolCall(item.call_id or new_call_id(), Function(item.name, encode_arguments(item.arguments))))
        elif item.type == "reasoning":
            reasoning += [part.text for part in item.content or item.summary or ()]
        if item.generation_token_ids is not None:
            ids = item
    distinct(calls)
    content = "".join(texts)
    message = Message("assistant", None if calls and not content else content, "\n".join(reasoning) or None, calls)
    return Answer(
        encode_message(message),
        finish_reason(finish, bool(calls)),
        read_usage(response.usage),
        response.model or "",
        ids.prompt_token_ids,
        ids.generation_token_ids or named_ids(logprobs),
        ids.generation_log_probs or ([item.logprob for item in logprobs] or None),
    )


def _flat_tool(tool: JsonObject) -> JsonObject:
    """Return a chat tool as Responses has it; there a tool is strict unless it says otherwise, in chat it is the reverse."""
    function = tool.get("function")
    return {"type": "function", "strict": False, **function} if function else tool


def _parts(message: Message) -> list[JsonObject]:
    """Return content parts by their names in Responses; parts of other kinds stay as they are."""
    text = "output_text" if message.role == "assistant" else "input_text"
    parts: list[JsonObject] = []
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
