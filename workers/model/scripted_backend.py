"""The backend `scripted`: the environment's own policy plays the model, for demos, tests and benchmarks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from gymq.api.backend import Backend, Request
from gymq.api.tools import wanted
from gymq.errors import CallError, Unavailable
from gymq.plugins import load_environments
from gymq.wire.calls import Generated, Usage
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Message, encode_message

from .options import number


class _Policy(msgspec.Struct):
    """An environment's policy, with the arguments that it takes."""

    act: Callable[..., Any]
    messages: bool
    task: bool
    awaited: bool


class ScriptedBackend(Backend):
    """Answers of the environment's `policy(messages, task)`; it runs on the worker's loop, so it must be quick.

    Without a tokenizer the usage is 0 tokens, as a guess would pass for a count.

    Args:
        model: the label of the results, `scripted` or `scripted:MODEL`.
        options: `latency`, seconds that each answer takes, as a slow model's (default 0); `environments`, those whose policies
            play, separated by commas (default: all installed).

    Raises:
        UsageError: the latency is no number of seconds.
    """

    name = "scripted"
    plays_environments = True

    def __init__(self, model: str, options: JsonObject) -> None:
        super().__init__(model, options)
        self._latency = number(self.name, options, "latency", 0.0, smallest=0)
        self._label = f"scripted:{model}" if model else "scripted"
        self._environments: str | None = options.get("environments")
        self._policies: dict[str, _Policy] = {}

    async def start(self) -> None:
        """Load the environments.

        Raises:
            UnknownName, UsageError: one that is named cannot be loaded.
        """
        for name, made in load_environments(self._environments).items():
            act = getattr(made, "policy", None)
            if act is not None:
                arguments = wanted(act)
                self._policies[name] = _Policy(
                    act, "messages" in arguments, "task" in arguments, inspect.iscoroutinefunction(act)
                )

    def needs_task(self, environment: str) -> bool:
        """Return whether the environment's policy takes the task."""
        policy = self._policies.get(environment)
        return policy is None or policy.task

    async def generate(self, request: Request) -> Generated:
        """Ask the policy.

        Raises:
            CallError: `model`: no policy, or it failed, or returned no message; `model_unavailable`: it says so..
        """
        policy = self._policies.get(request.environment)
        if policy is None:
            raise CallError(
                "model",
                f"environment {request.environment} has no policy on this worker; use another model, or define "
                "policy(messages, task)",
            )
        if self._latency:
            await asyncio.sleep(self._latency)
        arguments: JsonObject = {}
        if policy.messages:
            arguments["messages"] = request.messages
        if policy.task:
            arguments["task"] = request.task
        try:
            message = policy.act(**arguments)
            if policy.awaited:
                message = await message
        except Unavailable as error:
            raise CallError("model_unavailable", " ".join(str(error).split())) from error
        except Exception as error:
            where = f"the policy of environment {request.environment}"
            raise CallError("model", " ".join(f"{where} raised {type(error).__name__}: {error}".split())) from error
        if not isinstance(message, Message):
            raise CallError(
                "model", f"the policy of environment {request.environment} returned a {type(message).__name__}, not a Message"
            )
        finish = "tool_calls" if message.tool_calls else "stop"
        return Generated(encode_message(message), finish, Usage(), None, self._label)
