"""A model's answers from code: a script of them, a function, or a person at a terminal."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from gymq.api.backend import Backend, Request
from gymq.errors import CallError
from gymq.observe.terminal import say
from gymq.wire.calls import Generated, Usage
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Conversation, Function, Message, ToolCall, encode_message

#: An answer: a message, or the text of one.
Answer = Message | str

#: A function that answers: from the conversation, and the declared tools as chat-completions tools.
Answering = Callable[[Conversation, list[JsonObject]], Answer | Awaitable[Answer]]


class AnswersBackend(Backend):
    """The backend of answers that code gives.

    Args:
        answers: a function that is asked each time, or answers one after the other. A function that is not `async` runs in a
            thread, so that it may wait for a person.
    """

    name = "answers"

    def __init__(self, answers: Answering | Iterable[Answer]) -> None:
        super().__init__("", {})
        self._ask = answers if callable(answers) else _next_of(answers)

    async def generate(self, request: Request) -> Generated:
        """Return the next answer.

        Raises:
            CallError: `model`: there is none, the function raised, or it gave something else.
        """
        tools: list[JsonObject] = msgspec.json.decode(request.body).get("tools", [])
        try:
            if inspect.iscoroutinefunction(self._ask):
                answer: Any = self._ask(request.messages, tools)
            else:
                answer = await asyncio.to_thread(self._ask, request.messages, tools)
            answer = await answer if inspect.isawaitable(answer) else answer
        except CallError:
            raise
        except Exception as error:
            raise CallError("model", " ".join(f"the answers raised {type(error).__name__}: {error}".split())) from error
        message = Message("assistant", answer) if isinstance(answer, str) else answer
        if not isinstance(message, Message):
            raise CallError("model", f"an answer is a {type(answer).__name__}; give text or a Message")
        finish = "tool_calls" if message.tool_calls else "stop"
        return Generated(encode_message(message), finish, Usage(), None, self.name)


def _next_of(answers: Iterable[Answer]) -> Answering:
    left = iter(answers)

    def answer(messages: Conversation, tools: list[JsonObject]) -> Answer:
        for one in left:
            return one
        raise CallError("model", "the script has no more answers; the rollout asked for one more")

    return answer


class Person:
    """A person at a terminal who plays the model: a line is the answer, `/TOOL {"argument": value}` a call of a tool."""

    def __init__(self) -> None:
        self._shown = 0
        self._calls = 0

    def __call__(self, messages: Conversation, tools: list[JsonObject]) -> Message:
        """Show what is new, and return what the person types."""
        for index in range(self._shown, len(messages)):
            message = messages[index]
            if message.role != "assistant":
                say(f"{message.role}: {message.text}")
        self._shown = len(messages) + 1
        names = [tool["function"]["name"] for tool in tools]
        while True:
            line = input(f"[{' '.join(f'/{name}' for name in names)}] > " if names else "> ").strip()
            if not line.startswith("/"):
                return Message("assistant", line)
            name, _, arguments = line[1:].partition(" ")
            if name in names:
                self._calls += 1
                return Message("assistant", tool_calls=[ToolCall(f"call_{self._calls}", Function(name, arguments or "{}"))])
            say(f"there is no tool {name!r}")
