"""Weather: the smallest task with a tool. The model is asked about a city and may look its weather up."""

from __future__ import annotations

import re
import zlib

import msgspec

from gymq.api.environment import Environment, Score, tool
from gymq.wire.message import Conversation, Function, Message, ToolCall

_SKIES = ("cold", "warm", "rainy", "sunny", "windy", "foggy", "cloudy", "snowy")

#: A call of the tool or its result, as it stands in an encoded message. Text cannot pass for it: its quotes are escaped.
_CALL = b'"name":"get_weather"'

_CITY = re.compile(r"\b(?:in|for|of|at) ([^?.!,]+)")


class Weather(Environment):
    """Questions about a city's weather. The weather of a city is always the same."""

    name = "weather"

    @tool(read_only=True)
    async def get_weather(self, city: str) -> str:
        """Get the weather in a city.

        Args:
            city: the city's name.
        """
        sky = zlib.crc32(city.strip().lower().encode()) % len(_SKIES)
        return f"The weather in {city} is {_SKIES[sky]}."

    async def verify(self, messages: Conversation) -> Score:
        """Give every rollout 1.0, as NeMo Gym does, and count the tool's use.

        Args:
            messages: the conversation; no message is decoded, since benchmarks measure this path.
        """
        called = any(_CALL in turn for turn in messages.encoded)
        return Score(reward=1.0, metrics={"called_tool": float(called)})

    def policy(self, messages: Conversation) -> Message:
        """Look up the city of the last user message, then repeat the tool's result.

        Args:
            messages: the conversation.
        """
        last = messages.last
        if last.role == "tool":
            return Message(role="assistant", content=last.text)
        city = _CITY.search(last.text)
        if city is None:
            return Message(role="assistant", content="Which city do you mean?")
        arguments = msgspec.json.encode({"city": city[1].strip()}).decode()
        call = ToolCall(id=f"call_{len(messages)}_0", function=Function(name="get_weather", arguments=arguments))
        return Message(role="assistant", tool_calls=[call])
