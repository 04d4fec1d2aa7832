"""gymq: agent rollouts on message queues.

What people import from here is loaded when it is first used, so that `import gymq` costs nothing in the processes that
need little of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymq.api.agent import Agent, CallTool, Extend, Finish, Generate, Respond, View
    from gymq.api.backend import Backend, Request
    from gymq.api.environment import Ask, Environment, Opening, Response, Score, hook, tool
    from gymq.client.consumer import Results, consume
    from gymq.client.producer import Producer, produce
    from gymq.client.publish_weights import publish_weights
    from gymq.client.sink_loop import Sink
    from gymq.errors import GymqError, TaskError, ToolError, Unavailable
    from gymq.process.sandbox import ProgramResult, run_program
    from gymq.settings import Settings
    from gymq.store.runs import RunConfig
    from gymq.wire.message import Conversation, Function, Message, ToolCall
    from gymq.wire.rollout import Group, Rollout
    from gymq.wire.task import Task
    from gymq.wire.token_branches import Branch

_HOMES = {
    "api.agent": ("Agent", "CallTool", "Extend", "Finish", "Generate", "Respond", "View"),
    "api.backend": ("Backend", "Request"),
    "wire.token_branches": ("Branch",),
    "client.consumer": ("Results", "consume"),
    "api.environment": ("Ask", "Environment", "Opening", "Response", "Score", "hook", "tool"),
    "errors": ("GymqError", "TaskError", "ToolError", "Unavailable"),
    "wire.message": ("Conversation", "Function", "Message", "ToolCall"),
    "client.publish_weights": ("publish_weights",),
    "client.producer": ("Producer", "produce"),
    "wire.rollout": ("Group", "Rollout"),
    "store.runs": ("RunConfig",),
    "process.sandbox": ("ProgramResult", "run_program"),
    "settings": ("Settings",),
    "client.sink_loop": ("Sink",),
    "wire.task": ("Task",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Agent", "Ask", "Backend", "Branch", "CallTool", "Conversation", "Environment", "Extend", "Finish", "Function",
    "Generate", "Group", "GymqError", "Message", "Opening", "Producer", "ProgramResult", "Request", "Respond", "Response",
    "Results", "Rollout", "RunConfig", "Score", "Settings", "Sink", "Task", "TaskError", "ToolCall", "ToolError",
    "Unavailable", "View", "consume", "hook", "produce", "publish_weights", "run_program", "tool",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'gymq' has no attribute {name!r}")
    value = getattr(import_module(f"gymq.{home}"), name)
    globals()[name] = value
    return value
