"""Tool calls of an answer, as all backends hand them on: with distinct ids, and the finish reason that goes with them."""

from __future__ import annotations

import os

from gymq.wire.message import ToolCall


def finish_reason(finish: str, called: bool) -> str:
    """Return an answer's finish reason; servers disagree whether one with tool calls ended by `stop`.

    Args:
        finish: the server's finish reason.
        called: whether the answer has tool calls.
    """
    return "tool_calls" if called and finish == "stop" else finish


def distinct(calls: list[ToolCall]) -> list[ToolCall]:
    """Make the ids of one turn's tool calls distinct, as their results name them."""
    seen: set[str] = set()
    for call in calls:
        if call.id in seen:
            call.id = new_call_id()
        seen.add(call.id)
    return calls


def new_call_id() -> str:
    """Return a new id for a tool call without one, as its result must name it."""
    return f"call_{os.urandom(12).hex()}"
