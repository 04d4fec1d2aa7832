"""The interface of agents: a pure function from the conversation to the next action."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from gymq.api.definition import check_calls, check_spelling, refusal
from gymq.wire.json_types import Content, JsonObject
from gymq.wire.message import Conversation, Message


class Generate(msgspec.Struct, frozen=True):
    """Action: ask the model for the next message."""


class CallTool(msgspec.Struct, frozen=True):
    """Action, alone or in a list: call a tool of the environment.

    Args:
        name: the tool's name.
        arguments: a JSON object as text.
        id: the call's id, which its result repeats; None: the call stood in plain text.
    """

    name: str
    arguments: str
    id: str | None = None


class Respond(msgspec.Struct, frozen=True):
    """Action: let the environment speak, by its hook `respond`."""


class Finish(msgspec.Struct, frozen=True):
    """Action: end the conversation and have it scored.

    Args:
        truncated: True: the conversation was cut short before its end.
        reason: the cause of the cut, for the rollout's record.
    """

    truncated: bool = False
    reason: str = ""


class Extend(msgspec.Struct, frozen=True):
    """Action: append messages, then ask the agent again.

    Args:
        messages: the messages, which count as part of the conversation.
    """

    messages: list[Message]


Action = Generate | list[CallTool] | Respond | Finish | Extend


class View(msgspec.Struct):
    """The conversation as an agent sees it.

    Args:
        messages: the conversation so far.
        turns: the number of the model's answers.
        finish: the end of the model's newest answer (`stop`, `tool_calls`, `length`, `content_filter`), or "".
        responds: True: the environment speaks between turns.
        tools: the declared tools, as chat-completions tools.
    """

    messages: Conversation
    turns: int
    finish: str
    responds: bool
    tools: list[JsonObject]


class Agent:
    """Base of all agents: stateless, so that the same conversation always leads to the same action.

    A subclass sets `name` and defines `act`, and is registered as an entry point of the group `gymq.agents`.

        class OneQuestion(Agent):
            name = "one_question"

            def act(self, view: View) -> Action:
                return Generate() if view.turns == 0 else Finish()
    """

    #: The name by which runs choose this agent.
    name: ClassVar[str] = ""

    #: Whether requests declare the tools to the model; False for an agent that reads calls from plain text.
    declares_tools: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what would fail or be passed over in each rollout.

        Raises:
            UsageError: with file, line and remedy.
        """
        super().__init_subclass__(**kwargs)
        check_calls(cls, "act", "view")
        check_calls(cls, "observe", "call", "content")
        check_spelling(cls, Agent, {"act": None, "observe": None}, ())
        if vars(cls).get("name") and cls.act is Agent.act:
            raise refusal(cls, "", "defines no act(self, view); define it, or remove its name if other agents derive from it")

    def act(self, view: View) -> Action:
        """Return the next action.

        Args:
            view: the conversation and its circumstances.
        """
        raise NotImplementedError(f"agent {type(self).__name__} defines no act(view)")

    def observe(self, call: CallTool, content: Content) -> Message:
        """Return the message that shows a tool's result to the model.

        Args:
            call: the call.
            content: its result: text or content parts.
        """
        if call.id is None:
            return Message(role="user", content=content)
        return Message(role="tool", content=content, tool_call_id=call.id, name=call.name)
