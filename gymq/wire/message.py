"""Chat messages, in the shape of OpenAI's chat completions: the one form in which a conversation is kept.

A message is encoded once, as JSON, by whoever makes it. From then on it is bytes: request bodies and finished
rollouts are joined from these bytes, and only who must look inside decodes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

#: The names of functions that OpenAI-compatible servers accept.
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Function(msgspec.Struct):
    """The function that a tool call names.

    Args:
        name: the tool's name.
        arguments: a JSON object as text, exactly as the model wrote it (it may be invalid).
    """

    name: str
    arguments: str


class ToolCall(msgspec.Struct, tag_field="type", tag="function"):
    """One call of a tool by the model.

    Args:
        id: the call's id, which its result repeats.
        function: name and arguments.
    """

    id: str
    function: Function


class Message(msgspec.Struct, omit_defaults=True):
    """One message of a conversation.

    Args:
        role: `system`, `developer`, `user`, `assistant` or `tool`.
        content: text, or content parts (`{"type": "text", ...}`, `{"type": "image_url", ...}`), or None.
        reasoning: what the model thought before it answered; recorded, not sent back to the model.
        tool_calls: the assistant's calls.
        tool_call_id: of a `tool` message: the call it answers.
        name: of a `tool` message: the tool.
    """

    role: str
    content: str | list[dict[str, Any]] | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as plain text; parts that are not text are left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.get("text") or "" for part in self.content or ())


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """Encode a message as the JSON bytes that are stored, sent and written."""
    return _encoder.encode(message)


def decode_message(data: bytes) -> Message:
    """Decode one stored message."""
    return _decoder.decode(data)


def without_reasoning(data: bytes) -> bytes:
    """Drop the reasoning from an encoded message; other messages come back untouched, undecoded."""
    if b'"reasoning":' not in data:
        return data
    message = _decoder.decode(data)
    message.reasoning = None
    return _encoder.encode(message)


class Conversation:
    """The messages so far: a sequence that decodes a message when it is read.

    Args:
        encoded: the encoded messages, oldest first.
    """

    __slots__ = ("_decoded", "encoded")

    def __init__(self, encoded: list[bytes]) -> None:
        self.encoded = encoded
        self._decoded: dict[int, Message] = {}

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Message:
        if index < 0:
            index += len(self.encoded)
        if not 0 <= index < len(self.encoded):
            raise IndexError(f"message {index} of {len(self.encoded)}")
        message = self._decoded.get(index)
        if message is None:
            message = self._decoded[index] = _decoder.decode(self.encoded[index])
        return message

    def __iter__(self) -> Iterator[Message]:
        return (self[i] for i in range(len(self.encoded)))

    @property
    def last(self) -> Message:
        """The newest message."""
        return self[-1]

    def last_of(self, role: str) -> Message | None:
        """The newest message of a role, or None."""
        for i in range(len(self.encoded) - 1, -1, -1):
            if self[i].role == role:
                return self[i]
        return None
