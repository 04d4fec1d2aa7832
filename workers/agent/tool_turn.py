"""The tool calls of one turn, those that run together, and their results.

Calls that may write run one after another, neighbours that only read run together. A result is kept as it comes, so that
a call that was answered is never sent again.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gymq.api.agent import CallTool
from gymq.api.environment import EnvironmentSpec, ToolSpec
from gymq.errors import Fault
from gymq.wire.calls import Reply, ToolResult

from .agent_guard import AgentGuard
from .record import call_record
from .state import LiveRollout, Running
from .step import Step

#: Calls of one turn that run beside each other; the others follow. Lua's stack bounds how many one script can take.
MAX_PARALLEL_TOOLS = 1000

#: Faults of an isolated tool that are of the program that the model asked to run: the model gets them as results.
_LIMITS = frozenset({"timeout", "killed", "memory", "result_too_large"})

_TOOL = msgspec.msgpack.Decoder(ToolResult)


class ToolTurn:
    """A rollout's tool calls; they stand in its state.

    Args:
        live: the rollout.
        spec: its environment.
        guard: its agent, which words results as messages.
        step: where call records go.
    """

    def __init__(self, live: LiveRollout, spec: EnvironmentSpec, guard: AgentGuard, step: Step) -> None:
        self.live = live
        self.state = live.state
        self.specs = {tool.name: tool for tool in spec.tools}
        self.guard = guard
        self.step = step

    def next(self, most: int) -> None:
        """Take the next calls: one, or neighbours that only read, at most `most`."""
        state = self.state
        count = 1
        if self._reads(state.todo[0]):
            while count < min(len(state.todo), most) and self._reads(state.todo[count]):
                count += 1
        state.running = [Running(call, self._refuse(call)) for call in state.todo[:count]]
        state.todo = state.todo[count:]
        state.tool_calls += count

    def unanswered(self) -> list[CallTool]:
        """Return the calls that have no result."""
        return [running.call for running in self.state.running if running.content is None]

    def take(
        self, replies: list[Reply], kept: Callable[[ToolSpec, Reply], None]
    ) -> tuple[list[tuple[ToolSpec, Fault]], list[bytes]]:
        """Keep what was answered.

        Args:
            replies: one for each call that was out, in order.
            kept: told of each tool and its reply.

        Returns:
            The faults, and the states that tools have left, oldest first.
        """
        left = iter(replies)
        faults: list[tuple[ToolSpec, Fault]] = []
        memories: list[bytes] = []
        for running in self.state.running:
            if running.content is not None:
                continue
            reply = next(left)
            spec = self.specs[running.call.name]
            self.step.calls.append(call_record("tool", self.live.version, self.state.queued, reply, spec.name))
            kept(spec, reply)
            if reply.fault is None:
                result = _TOOL.decode(reply.value)
                running.content = result.content
                if result.state is not None and not spec.read_only:
                    memories.append(result.state)
            elif spec.isolated and reply.fault.kind in _LIMITS:
                running.content = msgspec.json.encode(f"Error: {reply.fault.message}")
            else:
                faults.append((spec, reply.fault))
        return faults, memories

    def results(self) -> list[bytes]:
        """Return the messages of the results up to the first call that has none."""
        messages: list[bytes] = []
        for running in self.state.running:
            if running.content is None:
                break
            messages.append(self._observe(running.call, running.content))
        self.state.running = []
        return messages

    def cut(self, limit: str) -> list[bytes]:
        """Return the messages of all calls of the turn; those without a result get an error, as every call must be answered."""
        content = msgspec.json.encode(f"Error: the call was not done: the rollout has reached its limit {limit}.")
        state = self.state
        calls = [*state.running, *(Running(call) for call in state.todo)]
        state.running, state.todo = [], []
        return [self._observe(running.call, running.content or content) for running in calls]

    def _refuse(self, call: CallTool) -> bytes | None:
        if call.name in self.specs and call.name in self.live.declared:
            return None
        known = ", ".join(sorted(self.live.declared & self.specs.keys())) or "none"
        return msgspec.json.encode(f"Error: there is no tool {call.name!r}. Tools: {known}.")

    def _observe(self, call: CallTool, content: bytes) -> bytes:
        return self.guard.observe(call, msgspec.json.decode(content))

    def _reads(self, call: CallTool) -> bool:
        tool = self.specs.get(call.name)
        # An unknown tool is answered on the spot and writes nothing.
        return tool is None or tool.read_only
