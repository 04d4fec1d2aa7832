"""The user's agent behind a guard: whatever it raises or returns, the machine gets an action, bytes, or one kind of error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gymq.api.agent import Agent, CallTool, Extend, Finish, Generate, Respond, View
from gymq.wire.message import Message, encode_message

#: Messages that an agent may add in a row before it must do something else.
EXTENSIONS = 8

#: The actions of an agent, but for adding messages.
Decision = Generate | list[CallTool] | Respond | Finish

_CALLS = msgspec.msgpack.Decoder(list[CallTool])
_FINISH = msgspec.msgpack.Decoder(Finish)
_encoder = msgspec.msgpack.Encoder()


class AgentFailed(Exception):
    """The agent's code raised, or returned no valid action or message."""


class AgentGuard:
    """An agent whose failures are all `AgentFailed`.

    Args:
        agent: the user's agent.
        name: its registered name.
    """

    def __init__(self, agent: Agent, name: str) -> None:
        self._agent = agent
        self._name = name

    def act(self, view: Callable[[], View], extend: Callable[[list[bytes]], None]) -> Decision:
        """Ask for the next action; messages that the agent adds first go to `extend`.

        Args:
            view: makes what the agent sees now.
            extend: appends encoded messages to the conversation.

        Raises:
            AgentFailed: it raised, or gave no action.
        """
        for _ in range(EXTENSIONS):
            try:
                action = self._agent.act(view())
                if not isinstance(action, Extend):
                    return self._checked(action)
                extend([_encoded(message) for message in action.messages])
            except Exception as error:
                raise _failed(error) from error
        raise AgentFailed(f"agent {self._name!r} added messages {EXTENSIONS} times without an action")

    def observe(self, call: CallTool, content: str | list[dict[str, Any]]) -> bytes:
        """Return the agent's message for a tool's result, encoded.

        Args:
            call: the tool call.
            content: its result.

        Raises:
            AgentFailed: it raised, or gave no message.
        """
        try:
            return _encoded(self._agent.observe(call, content))
        except Exception as error:
            raise _failed(error) from error

    def _checked(self, action: Any) -> Decision:
        """Return an action with its fields' types checked: they are stored and sent."""
        if isinstance(action, list) and action:
            return _CALLS.decode(_encoder.encode(action))
        if isinstance(action, Finish):
            return _FINISH.decode(_encoder.encode(action))
        if isinstance(action, Generate | Respond):
            return action
        raise AgentFailed(f"agent {self._name!r} gave {action!r}, which is no action")


def _failed(error: Exception) -> AgentFailed:
    if isinstance(error, AgentFailed):
        return error
    return AgentFailed(" ".join(f"{type(error).__name__}: {error}".split()))


def _encoded(message: Any) -> bytes:
    if not isinstance(message, Message):
        raise TypeError(f"a message is a {type(message).__name__}; make it a gymq Message")
    return encode_message(message)
