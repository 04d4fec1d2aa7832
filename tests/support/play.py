"""A rollout that is advanced by hand, with an environment that is only described and replies that are made here."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from gymq_workers.agent.step import Step
from gymq_workers.inline.rollout import InlineRollout, calls

from gymq.api.agent import Agent
from gymq.api.environment import EnvironmentSpec, HookSpec, ToolSpec
from gymq.errors import Fault
from gymq.runtime.affinity import AffinityRouter
from gymq.store.runs import RunConfig
from gymq.wire.calls import Call, Generated, Opened, Reply, Responded, Scored, Tokens, ToolResult, Usage, encode
from gymq.wire.message import Function, Message, ToolCall, encode_message
from gymq.wire.record import encode_call
from gymq.wire.task import Task


class Script(Agent):
    """Takes its actions from a list; what is an exception is raised."""

    name = "script"

    def __init__(self, *actions: Any) -> None:
        self.actions = list(actions)
        self.lengths: list[int] = []

    def act(self, view: Any) -> Any:
        self.lengths.append(len(view.messages))
        action = self.actions.pop(0)
        if isinstance(action, Exception):
            raise action
        return action


class Play(InlineRollout):
    """One rollout with an environment that is only described, for replies by hand.

    Args:
        agent: its agent.
        tools: names of the environment's tools, or their specs.
        hooks: the hooks that the environment has; one that ends with "!" asks for the live session.
        config: fields of the run.
        routes: who has private mailboxes.
        task: fields of the task.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        tools=(),
        hooks=("verify",),
        config: dict | None = None,
        routes: AffinityRouter | None = None,
        **task: Any,
    ) -> None:
        specs = [tool if isinstance(tool, ToolSpec) else spec(tool) for tool in tools]
        present = {hook.rstrip("!"): HookSpec(present=True, session=hook.endswith("!")) for hook in hooks}
        task.setdefault("encoded", [encode_message(Message("user", "go"))])
        super().__init__(
            "r.7.1",
            Task("t", "world", **task),
            RunConfig("r", "world", agent.name, "model", **(config or {})),
            EnvironmentSpec("world", specs, **present),
            agent,
            routes or AffinityRouter(),
        )

    def to(self, phase: str) -> Play:
        """Play on until the pending calls are of a phase, with friendly replies."""
        step = self.go()
        while self.state.phase != phase:
            assert not step.final, f"ended before {phase}"
            step = self.go(*[friendly(call) for _, call in calls(step)])
        return self


def spec(name: str, **flags: Any) -> ToolSpec:
    """A tool."""
    return ToolSpec(name, {"type": "function", "function": {"name": name, "parameters": {}}}, **flags)


def ways(step: Step) -> list[tuple[Any, ...]]:
    """Workers that are preferred for each call that a step sends, and the margin; nothing where nobody is."""
    return [() if send.workers is None else (send.workers, send.margin) for send in step.sends]


def only(step: Step) -> Call:
    """The one call that a step sends."""
    ((_, call),) = calls(step)
    return call


def reply(value: Any = None, n: int = 0, fault: Fault | None = None, attempt: int = 0, worker: str = "w") -> Reply:
    """The end of a call."""
    return Reply(n, 10.0, 11.0, worker, fault, b"" if value is None else encode(value), attempt)


def failed(kind: str, n: int = 0) -> Reply:
    """A call that ended with a fault."""
    return reply(None, n, Fault(kind, f"{kind} happened"))


def said(text: str | None = "hello", *tools: str, finish: str = "stop", tokens: Tokens | None = None, ids=None) -> Reply:
    """The model's answer, with calls of tools by name."""
    asked = [ToolCall((ids or {}).get(i, f"c{i}"), Function(tool, "{}")) for i, tool in enumerate(tools)]
    message = encode_message(Message("assistant", text, tool_calls=asked))
    return reply(Generated(message, finish, Usage(5, 3, 2, 1), tokens, "served"))


def result(content: Any, n: int = 0, state: Any = None) -> Reply:
    """A tool's result."""
    return reply(ToolResult(msgspec.json.encode(content), state=None if state is None else msgspec.msgpack.encode(state)), n)


def opened(state: Any = None, turns: list[bytes] | None = None, tools: Any = None) -> Reply:
    """How a rollout begins."""
    return reply(
        Opened(
            None if state is None else msgspec.msgpack.encode(state),
            turns or [],
            None if tools is None else msgspec.json.encode(tools),
        )
    )


def responded(*texts: str, done: bool = False, state: Any = None) -> Reply:
    """What the environment says."""
    turns = [encode_message(Message("user", text)) for text in texts]
    return reply(Responded(turns, done, None if state is None else msgspec.msgpack.encode(state)))


def scored(reward: float | None = 1.0, **more: Any) -> Reply:
    """A verdict."""
    return reply(Scored(reward, **more))


def friendly(call: Call) -> Reply:
    """A reply that lets a rollout go on."""
    if call.kind in ("generate", "ask"):
        return said()
    if call.kind == "tool":
        return result("ok", call.n)
    return {"open": opened(), "respond": responded("more"), "verify": scored(), "close": reply()}[call.kind]


def record(step: Step) -> dict[str, Any]:
    """The finished rollout's header."""
    assert step.final, "the rollout goes on"
    return json.loads(step.final.header + b"}")


def messages(play: Play) -> list[dict[str, Any]]:
    """The conversation."""
    return [json.loads(turn) for turn in play.live.messages]


def records(*steps: Step) -> list[dict[str, Any]]:
    """The call records of some steps."""
    return [json.loads(encode_call(call)) for step in steps for call in step.calls]
