"""Conversion of a row's messages and Responses items into chat-completions messages.

One list may hold both: chat messages (with `tool_calls`, `tool_call_id`) and the items of OpenAI's Responses API
(`message`, `function_call`, `function_call_output`, `reasoning`). Items that only OpenAI's own servers can continue are
refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gymq.errors import DataError
from gymq.wire.json_types import Content, JsonObject
from gymq.wire.message import Function, Message, ToolCall

ROLES = ("system", "developer", "user", "assistant", "tool")

#: Levels of nesting of a row. Python's recursion ends near 1000 frames, and a row must be safe in every worker.
MAX_DEPTH = 200

_TEXT = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text"})
_PARTS = "text, image_url, video_url, audio_url, input_audio, file, refusal, input_text, input_image, input_video, input_file"


class Part(msgspec.Struct):
    """One content part of either API; every field but `type` belongs to some types only."""

    type: str
    text: str | None = None
    refusal: str | None = None
    detail: str | None = None
    image_url: str | JsonObject | None = None
    video_url: str | JsonObject | None = None
    audio_url: str | JsonObject | None = None
    input_audio: JsonObject | None = None
    file: JsonObject | None = None
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class FunctionCallBody(msgspec.Struct):
    """The function of a chat message's tool call; data sets also write the arguments as an object."""

    name: str
    arguments: str | JsonObject | None = None


class FunctionCallItem(msgspec.Struct):
    """One of a chat message's tool calls."""

    id: str
    function: FunctionCallBody


class Item(msgspec.Struct):
    """One element of `messages` or of `input`; every field belongs to some kinds only, and null counts as absent."""

    type: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[FunctionCallItem] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    call_id: str | None = None
    arguments: str | JsonObject | None = None
    output: Any = None
    summary: list[Part] | None = None


def too_deep(value: object, text: bytes) -> bool:
    """Return whether decoded JSON is nested deeper than `MAX_DEPTH`.

    Args:
        value: the decoded JSON.
        text: its encoded form.
    """
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def check(value: object, type: Any, at: str) -> Any:
    """Convert decoded JSON to a type.

    Args:
        value: decoded JSON.
        type: the type.
        at: the value's place in the row, for the error.

    Raises:
        DataError: the value does not fit the type.
    """
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        inside = path.rstrip("`")
        raise DataError(f"{at}{inside}: {reason.replace('`', '')}; correct it") from None


def to_messages(items: list[Item], at: str) -> list[Message]:
    """Turn a row's messages or items into chat-completions messages.

    Args:
        items: the messages or items.
        at: their field in the row, for errors.

    Raises:
        DataError: an item is malformed, or has no form in chat completions.
    """
    thread = _Thread()
    for index, item in enumerate(items):
        thread.add(item, f"{at}[{index}]")
    thread.end()
    return thread.messages


class _Thread:
    """The messages so far, the reasoning that waits for its message, and the tool names by call id."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.reasoning: list[str] = []
        self.tools: dict[str, str] = {}

    def add(self, item: Item, at: str) -> None:
        kind = item.type or ("message" if item.role is not None else None)
        if kind == "message":
            self._message(item, at)
        elif kind == "function_call":
            name = _need(item.name, at, "name")
            self._assistant(None, [_call(_need(item.call_id, at, "call_id"), name, item.arguments)])
        elif kind == "function_call_output":
            self._tool(_need(item.call_id, at, "call_id"), item.name, _output(item.output, f"{at}.output"))
        elif kind == "reasoning":
            parts = item.content or item.summary or []
            self.reasoning.append(parts if isinstance(parts, str) else "\n".join(part.text or "" for part in parts))
        elif kind is None:
            raise DataError(f"{at} has neither a role nor a type; give it one, such as role user")
        else:
            raise DataError(
                f"{at} is a {kind[:60]!r} item, which only OpenAI's own servers can continue; "
                "remove the row, or write the item as a message or a function_call"
            )

    def end(self) -> None:
        """Append an empty answer for reasoning at the end: the model said nothing else in that turn."""
        if self.reasoning:
            self._append(Message("assistant", ""))

    def _message(self, item: Item, at: str) -> None:
        role = item.role
        if role not in ROLES:
            raise DataError(f"{at}.role is {str(role)[:60]!r}; use one of {', '.join(ROLES)}")
        content = _content(item.content, role, f"{at}.content")
        if role == "assistant":
            calls = [_call(call.id, call.function.name, call.function.arguments) for call in item.tool_calls or ()]
            reasoning = item.reasoning or item.reasoning_content
            if reasoning:
                self.reasoning.append(reasoning)
            self._assistant(content, calls, opens=True)
        elif role == "tool":
            self._tool(_need(item.tool_call_id or item.call_id, at, "tool_call_id"), item.name, content or "")
        elif content is None:
            raise DataError(f"{at}.content is missing; give a {role} message its text")
        else:
            self._append(Message(role, content))

    def _assistant(self, content: Content | None, calls: list[ToolCall], opens: bool = False) -> None:
        self.tools.update({call.id: call.function.name for call in calls})
        last = self.messages[-1] if self.messages else None
        # Chat completions want the results right behind the message that holds the calls. So calls join the assistant's
        # message before them, and text behind calls without results joins the message of these calls.
        if last is None or last.role != "assistant" or (opens and not last.tool_calls):
            if content is None and not calls:
                content = ""
            self._append(Message("assistant", content, tool_calls=calls))
            return
        last.tool_calls = last.tool_calls + calls
        last.content = _join(last.content, content)
        last.reasoning = "\n".join([*([last.reasoning] if last.reasoning else []), *self.reasoning]) or None
        self.reasoning = []

    def _tool(self, call: str, name: str | None, content: Content) -> None:
        self._append(Message("tool", content, tool_call_id=call, name=name or self.tools.get(call)))

    def _append(self, message: Message) -> None:
        reasoning = "\n".join(self.reasoning) or None
        self.reasoning = []
        if message.role == "assistant":
            message.reasoning = reasoning
        elif reasoning is not None:
            self.messages.append(Message("assistant", "", reasoning=reasoning))
        self.messages.append(message)


def _need(value: str | None, at: str, field: str) -> str:
    if value is None:
        raise DataError(f"{at}.{field} is missing; give it one")
    return value


def _call(id: str, name: str, arguments: str | JsonObject | None) -> ToolCall:
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments or {}).decode()
    return ToolCall(id, Function(name, arguments))


def _output(value: object, at: str) -> Content:
    return _content(check(value, str | list[Part] | None, at), "tool", at) or ""


def _join(first: Content | None, second: Content | None) -> Content | None:
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    parts = [[{"type": "text", "text": each}] if isinstance(each, str) else each for each in (first, second)]
    return parts[0] + parts[1]


def _content(content: str | list[Part] | None, role: str, at: str) -> Content | None:
    if content is None or isinstance(content, str):
        return content
    parts = [_part(part, f"{at}[{index}]") for index, part in enumerate(content)]
    # Many chat templates know plain text only: text stays plain wherever that loses nothing.
    plain = role in ("assistant", "tool") or len(parts) <= 1
    if plain and all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Part, at: str) -> JsonObject:
    kind = part.type
    if kind in _TEXT:
        return {"type": "text", "text": _need(part.text, at, "text")}
    if kind == "refusal":
        return {"type": "text", "text": _need(part.refusal, at, "refusal")}
    if kind in ("image_url", "input_image"):
        url = _url(part.image_url, at, "image_url")
        return {"type": "image_url", "image_url": {**url, "detail": part.detail} if part.detail else url}
    if kind in ("video_url", "input_video"):
        return {"type": "video_url", "video_url": _url(part.video_url, at, "video_url")}
    if kind == "audio_url":
        return {"type": "audio_url", "audio_url": _url(part.audio_url, at, "audio_url")}
    if kind == "input_audio" and part.input_audio is not None:
        return {"type": "input_audio", "input_audio": part.input_audio}
    if kind == "file" and part.file is not None:
        return {"type": "file", "file": part.file}
    if kind == "input_file" and (part.file_data or part.file_id):
        file = {"file_data": part.file_data, "file_id": part.file_id, "filename": part.filename}
        return {"type": "file", "file": {name: value for name, value in file.items() if value is not None}}
    raise DataError(f"{at} is a {kind[:60]!r} part that cannot be sent to a model; use one of {_PARTS}, with its data")


def _url(value: str | JsonObject | None, at: str, field: str) -> JsonObject:
    if isinstance(value, str):
        return {"url": value}
    if value is None or not isinstance(value.get("url"), str):
        raise DataError(f"{at}.{field} holds no URL; give one, or the data as a data: URL")
    return {name: entry for name, entry in value.items() if entry is not None}
