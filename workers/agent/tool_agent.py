"""The default agent: generate, call the tools that the model asks for, let the environment speak, until nothing is left."""

from __future__ import annotations

from gymq.api.agent import Action, Agent, CallTool, Finish, Generate, Respond, View


class ToolAgent(Agent):
    """Calls the tools that the model asks for; ends when it asks for none and the environment has nothing to say."""

    name = "tool"

    def act(self, view: View) -> Action:
        """Decide what comes next; see `Agent.act`."""
        if not len(view.messages):
            return Generate()
        last = view.messages.last
        if last.role != "assistant":
            return Generate()
        if view.finish in ("length", "content_filter"):
            # A tool call that was cut off is not executed.
            return Finish(truncated=True, reason=view.finish)
        if last.tool_calls and view.turns:
            return [CallTool(call.function.name, call.function.arguments, call.id) for call in last.tool_calls]
        if not view.turns:
            return Generate()  # the task itself ends with an assistant's message
        return Respond() if view.responds else Finish()
