"""Environments of the benchmark's own. Workers find them through entry points that `bench.points` writes for them."""

from __future__ import annotations

import asyncio

import msgspec
from gymq_environments.weather.environment import Weather

from bench.words import text
from gymq.api.environment import Environment, Response, tool
from gymq.wire.message import Conversation, Function, Message, ToolCall
from gymq.wire.task import Task

#: Seconds that the slow tool takes.
WAIT = 0.5

#: Seconds after which the spinning tool is killed.
SPIN = 3.0


class Turns(Weather):
    """Weather whose policy answers as often as the row's `turns` says: one tool call in each turn but the last."""

    name = "bench_turns"

    def policy(self, messages: Conversation, task: Task) -> Message:
        """Call the tool again until it is the last turn; what it costs does not depend on the turns so far.

        Args:
            messages: the conversation.
            task: the row.
        """
        done = (len(messages) - len(task.encoded)) // 2
        if done + 1 >= task["turns"]:
            return Message(role="assistant", content=messages.last.text)
        arguments = msgspec.json.encode({"city": task["city"]}).decode()
        call = ToolCall(id=f"call_{len(messages)}_0", function=Function(name="get_weather", arguments=arguments))
        return Message(role="assistant", tool_calls=[call])


class Slow(Weather):
    """Weather whose tool waits, so that the resource workers' slots are what limits a run."""

    name = "bench_slow"

    @tool(read_only=True)
    async def get_weather(self, city: str) -> str:
        """Get the weather in a city, after a while.

        Args:
            city: the city's name.
        """
        await asyncio.sleep(WAIT)
        return await Weather.get_weather(self, city)


class Spin(Weather):
    """Weather whose tool is isolated and never ends."""

    name = "bench_spin"

    @tool(isolated=True, timeout=SPIN)
    def get_weather(self, city: str) -> str:
        """Burn a core until killed.

        Args:
            city: the city's name.
        """
        while True:
            pass


class Talk(Environment):
    """Answers whatever the model says, as a tool would with a long result, until the row's `turns` are over."""

    name = "bench_talk"

    async def respond(self, messages: Conversation, task: Task) -> Response:
        """Answer with the row's `words`.

        Args:
            messages: the conversation.
            task: the row.
        """
        said = (len(messages) - len(task.encoded) + 1) // 2
        result = Message(role="user", content=text(task["index"] * 100 + said, task["words"]))
        return Response(messages=[result], done=said >= task["turns"])
