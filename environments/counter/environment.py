"""Counter: the smallest task with a state. The model adds to a counter; where the counter ends is the reward."""

from __future__ import annotations

import re

import msgspec

from gymq.api.environment import Environment, Opening, Score, tool
from gymq.errors import ToolError
from gymq.wire.message import Conversation, Function, Message, ToolCall
from gymq.wire.task import Task

#: The state travels as msgpack, whose integers have 64 bits.
_MAX_COUNT = 2**63 - 1

_STEP = re.compile(r"\badd (-?\d+)|\bget the count")


class CounterState(msgspec.Struct):
    """The counter's value."""

    count: int


class Counter(Environment):
    """Add numbers to a counter that starts somewhere and must end at `expected_count`."""

    name = "counter"
    State = CounterState

    async def open(self, task: Task) -> Opening:
        """Set the counter to the row's `initial_count`."""
        return Opening(state=CounterState(count=task["initial_count"]))

    @tool()
    async def increment_counter(self, count: int, state: CounterState) -> str:
        """Add a number to the counter.

        Args:
            count: the number to add; it may be negative.
        """
        if abs(state.count + count) > _MAX_COUNT:
            raise ToolError(f"the counter cannot go beyond {_MAX_COUNT}")
        state.count += count
        return '{"success": true}'

    @tool(read_only=True)
    async def get_counter_value(self, state: CounterState) -> str:
        """Get the counter's value."""
        return f'{{"count": {state.count}}}'

    async def verify(self, task: Task, state: CounterState) -> Score:
        """Give 1.0 if the counter ends at the row's `expected_count`, else 0.0."""
        return Score(reward=float(state.count == task["expected_count"]), metrics={"count": float(state.count)})

    def policy(self, messages: Conversation) -> Message:
        """Do all steps of "add 1 then add 2 then get the count" in one turn, then repeat the last tool's result.

        Args:
            messages: the conversation.
        """
        last = messages.last
        if last.role == "tool":
            return Message(role="assistant", content=f"Done: {last.text}")
        calls = []
        for i, step in enumerate(_STEP.finditer(last.text)):
            name, arguments = ("increment_counter", f'{{"count": {step[1]}}}') if step[1] else ("get_counter_value", "{}")
            calls.append(ToolCall(id=f"call_{len(messages)}_{i}", function=Function(name, arguments)))
        return Message(role="assistant", content=None if calls else "There is nothing to do.", tool_calls=calls)
