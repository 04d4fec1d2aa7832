"""The tool calls of an answer, as every backend hands them on: each with an id of its own, and the finish that they mean."""

from __future__ import annotations

import os

from gymq.wire.message import ToolCall


def finish_reason(finish: str, called: bool) -> str:
    """Return how an answer ended: servers disagree whether one with tool calls ended by `stop`.

    Args:
        finish: the server's finish reason.
        called: whether the answer has tool calls.
    """
    return "tool_calls" if called and finish == "stop" else finish


def distinct(calls: list[ToolCall]) -> list[ToolCall]:
    """Give each tool call of one turn an id of its own: their results name them."""
    seen: set[str] = set()
    for call in calls:
        if call.id in seen:
            call.id = new_call_id()
        seen.add(call.id)
    return calls


def new_call_id() -> str:
    """Make an id for a tool call that the server left without one; its result must name it."""
    return f"call_{os.urandom(12).hex()}"
