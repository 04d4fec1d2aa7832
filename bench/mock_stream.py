"""Answers of the mock server as server-sent events: the same answer, a few characters at a time."""

from __future__ import annotations

from typing import Any

import msgspec

#: Characters of one piece.
PIECE = 5


def events(answer: bytes) -> list[bytes]:
    """The events of a chat completion or of a Responses answer.

    Args:
        answer: the whole answer's body.
    """
    whole = msgspec.json.decode(answer)
    if "error" in whole and "output" not in whole:
        return [_event(whole)]
    if "output" in whole:
        kinds = {"completed": "response.completed", "incomplete": "response.incomplete", "failed": "response.failed"}
        made = [
            {"type": "response.created", "sequence_number": 0, "response": {**whole, "status": "in_progress", "output": []}}
        ]
        made.append({"type": kinds[whole["status"]], "sequence_number": 1, "response": whole})
        return [_event(one, one["type"]) for one in made]
    return [*[_event(one) for one in _chunks(whole)], b"data: [DONE]\n\n"]


def chunked(data: bytes) -> bytes:
    """One chunk of HTTP's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _chunks(whole: dict[str, Any]) -> list[dict[str, Any]]:
    choice = whole["choices"][0]
    message = choice["message"]
    head = {"id": whole["id"], "object": "chat.completion.chunk", "created": 1, "model": whole["model"]}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if message.get("content") is not None else []
    for name in ("reasoning_content", "content", "refusal"):
        deltas += [{name: piece} for piece in _pieces(message.get(name) or "")]
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        first = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        deltas.append({"tool_calls": [first]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": a}}]} for a in _pieces(function["arguments"])]
    made: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    made.insert(0, {**head, "choices": [], "prompt_filter_results": []})  # as Azure begins
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    if choice.get("token_ids"):
        last["token_ids"] = choice["token_ids"]
        made[1]["prompt_token_ids"] = whole["prompt_token_ids"]
    if choice.get("logprobs"):
        last["logprobs"] = choice["logprobs"]
    return [*made, {**head, "choices": [last]}, {**head, "choices": [], "usage": whole["usage"]}]


def _pieces(text: str) -> list[str]:
    return [text[i : i + PIECE] for i in range(0, len(text), PIECE)]


def _event(data: dict[str, Any], name: str = "") -> bytes:
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + msgspec.json.encode(data) + b"\n\n"
