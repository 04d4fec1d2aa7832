"""An agent that reads its actions from plain text, for models without tool calling."""

from __future__ import annotations

import json
import re

from gymq.api.agent import Action, Agent, CallTool, Extend, Finish, Generate, View
from gymq.wire.message import Message

#: `Action: name {"argument": 1}`, the last line of its kind counts.
_ACTION = re.compile(r"^Action:\s*([\w-]+)\s*(\{.*\})?\s*$", re.M)

_RULES = (
    "You may use these tools. To use one, end your message with one line\nAction: name {arguments as JSON}\n"
    "and wait for the Observation. When you know the answer, end with a line\nAnswer: ...\n\n"
)


class ReActAgent(Agent):
    """Thought, action, observation, in plain text."""

    name = "react"
    declares_tools = False

    def act(self, view: View) -> Action:
        """Decide what comes next; see `Agent.act`."""
        if not any(message.role == "user" and message.text.startswith(_RULES) for message in view.messages):
            tools = "\n".join(json.dumps(tool["function"]) for tool in view.tools)
            return Extend([Message(role="user", content=_RULES + tools)])
        last = view.messages.last
        if last.role != "assistant":
            return Generate()
        if view.finish in ("length", "content_filter"):
            return Finish(truncated=True, reason=view.finish)
        actions = _ACTION.findall(last.text)
        return [CallTool(actions[-1][0], actions[-1][1] or "{}")] if actions else Finish()

    def observe(self, call: CallTool, content: str | list[dict]) -> Message:
        """Show a result as an observation.

        Args:
            call: the call.
            content: its result: text or content parts.
        """
        return Message(role="user", content=f"Observation: {content}")
