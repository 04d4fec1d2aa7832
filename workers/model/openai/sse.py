"""Streamed answers (server-sent events), joined to the body that they would have had in one piece."""

from __future__ import annotations

from typing import Any

from gymq.wire.json_types import JsonObject

from .answer import MalformedAnswer

#: Fields of a message whose text comes in pieces.
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")


class ChatStream:
    """The chunks of one chat completion.

    Args:
        largest: its characters at most.
    """

    def __init__(self, largest: int) -> None:
        self._left = largest
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, JsonObject] = {}
        self._logprobs: list[Any] = []
        self._ids: list[int] = []
        self._choice: JsonObject = {}
        self._whole: JsonObject = {}

    @property
    def ended(self) -> bool:
        """Whether the finish reason has come."""
        return self._choice.get("finish_reason") is not None

    def add(self, chunk: Any) -> None:
        """Append the next chunk, a decoded `chat.completion.chunk`.

        Raises:
            MalformedAnswer: it is no chunk, or the answer is too long.
        """
        try:
            self._add(chunk)
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise MalformedAnswer(f"a chunk of the stream is malformed: {error}") from None

    def _add(self, chunk: JsonObject) -> None:
        for name in ("model", "usage", "prompt_token_ids"):
            if chunk.get(name):
                self._whole[name] = chunk[name]
        # Azure sends its filters, and every server the usage, in chunks without a choice.
        for choice in (chunk.get("choices") or ())[:1]:
            if choice.get("finish_reason") is not None:
                self._choice["finish_reason"] = choice["finish_reason"]
            self._logprobs += (choice.get("logprobs") or {}).get("content") or ()
            self._ids += choice.get("token_ids") or ()
            delta = choice.get("delta") or {}
            for name in _TEXTS:
                if delta.get(name) is not None:
                    self._texts.setdefault(name, []).append(self._take(delta[name]))
            for piece in delta.get("tool_calls") or ():
                call = self._calls.setdefault(int(piece.get("index") or 0), {"id": None, "name": [], "arguments": []})
                call["id"] = piece.get("id") or call["id"]
                for name in ("name", "arguments"):
                    call[name].append(self._take((piece.get("function") or {}).get(name) or ""))

    def whole(self) -> JsonObject:
        """Return the completion as one object."""
        message: JsonObject = {name: "".join(pieces) for name, pieces in self._texts.items()}
        message["tool_calls"] = [
            {"id": call["id"], "function": {name: "".join(call[name]) for name in ("name", "arguments")}}
            for _, call in sorted(self._calls.items())
        ]
        if message["tool_calls"] and not message.get("content"):
            message["content"] = None
        choice = {**self._choice, "message": message}
        if self._logprobs:
            choice["logprobs"] = {"content": self._logprobs}
        if self._ids:
            choice["token_ids"] = self._ids
        return {**self._whole, "choices": [choice]}

    def _take(self, text: str) -> str:
        self._left -= len(text)
        if self._left < 0:
            raise MalformedAnswer("the stream is longer than any answer")
        return text


class ResponsesStream:
    """The events of one Responses answer, of which the last holds all of it."""

    def __init__(self) -> None:
        self._whole: JsonObject | None = None

    @property
    def ended(self) -> bool:
        """Whether the last event has come."""
        return self._whole is not None

    def add(self, event: Any) -> None:
        """Take the next decoded event.

        Raises:
            MalformedAnswer: it is no event.
        """
        if not isinstance(event, dict):
            raise MalformedAnswer("an event of the stream is malformed")
        if event.get("type") in ("response.completed", "response.incomplete", "response.failed"):
            self._whole = event.get("response")
        elif event.get("type") == "error":
            self._whole = {"error": {"code": event.get("code"), "message": event.get("message")}}

    def whole(self) -> JsonObject:
        """Return the answer as one object."""
        return self._whole or {}
