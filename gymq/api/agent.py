"""What a person writes to make an agent: a pure function from the conversation to the next action."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from gymq.wire.message import Conversation, Message


class Generate(msgspec.Struct, frozen=True):
    """Ask the model for the next message."""


class CallTool(msgspec.Struct, frozen=True):
    """Call a tool of the environment.

    Args:
        name: the tool's name.
        arguments: a JSON object as text.
        id: the call's id, which its result repeats; None: the call stood in plain text.
    """

    name: str
    arguments: str
    id: str | None = None


class Respond(msgspec.Struct, frozen=True):
    """Let the environment speak."""


class Finish(msgspec.Struct, frozen=True):
    """End the conversation and have it scored.

    Args:
        truncated: True: it was cut short, not ended.
        reason: why, when it was cut short.
    """

    truncated: bool = False
    reason: str = ""


class Extend(msgspec.Struct, frozen=True):
    """Append messages of the agent's own, then ask it again."""

    messages: list[Message]


Action = Generate | list[CallTool] | Respond | Finish | Extend


class View(msgspec.Struct):
    """What an agent sees.

    Args:
        messages: the conversation so far.
        turns: how many times the model has answered.
        finish: how the model's newest answer ended (`stop`, `tool_calls`, `length`, `content_filter`), or "".
        responds: True: the environment speaks between turns.
        tools: the tools that are declared, as chat-completions tools.
    """

    messages: Conversation
    turns: int
    finish: str
    responds: bool
    tools: list[dict[str, Any]]


class Agent:
    """Base of all agents. Holds no state: the same conversation always gives the same action.

    A subclass sets `name` and defines `act`.
    """

    name: ClassVar[str] = ""

    #: Whether the model is told of the tools in the request; an agent that reads calls from plain text says False.
    declares_tools: ClassVar[bool] = True

    def act(self, view: View) -> Action:
        """Decide what comes next.

        Args:
            view: the conversation and what is known of it.
        """
        raise NotImplementedError(f"agent {type(self).__name__} defines no act(view)")

    def observe(self, call: CallTool, content: str | list[dict[str, Any]]) -> Message:
        """Turn a tool's result into a message.

        Args:
            call: the call.
            content: its result: text or content parts.
        """
        if call.id is None:
            return Message(role="user", content=content)
        return Message(role="tool", content=content, tool_call_id=call.id, name=call.name)
