"""gymq: agent rollouts on message queues.

What people import from here is loaded when it is first used, so that `import gymq` costs nothing in the processes that
need little of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymq.agent import Agent, CallTool, Extend, Finish, Generate, Respond, View
    from gymq.backend import Backend, Request
    from gymq.branches import Branch
    from gymq.environment import Ask, Environment, Opening, Response, Score, hook, tool
    from gymq.errors import GymqError, TaskError, ToolError, Unavailable
    from gymq.message import Conversation, Function, Message, ToolCall
    from gymq.producer import Producer, produce
    from gymq.publication import publish_weights
    from gymq.results import Results, consume
    from gymq.rollout import Group, Rollout
    from gymq.run import RunConfig
    from gymq.sandbox import Ran, run_program
    from gymq.settings import Settings
    from gymq.sink import Sink
    from gymq.task import Task

_HOMES = {
    "agent": ("Agent", "CallTool", "Extend", "Finish", "Generate", "Respond", "View"),
    "backend": ("Backend", "Request"),
    "branches": ("Branch",),
    "results": ("Results", "consume"),
    "environment": ("Ask", "Environment", "Opening", "Response", "Score", "hook", "tool"),
    "errors": ("GymqError", "TaskError", "ToolError", "Unavailable"),
    "message": ("Conversation", "Function", "Message", "ToolCall"),
    "publication": ("publish_weights",),
    "producer": ("Producer", "produce"),
    "rollout": ("Group", "Rollout"),
    "run": ("RunConfig",),
    "sandbox": ("Ran", "run_program"),
    "settings": ("Settings",),
    "sink": ("Sink",),
    "task": ("Task",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Agent", "Ask", "Backend", "Branch", "CallTool", "Conversation", "Environment", "Extend", "Finish", "Function", "Generate",
    "Group", "GymqError", "Message", "Opening", "Producer", "Ran", "Request", "Respond", "Response", "Results", "Rollout",
    "RunConfig", "Score", "Settings", "Sink", "Task", "TaskError", "ToolCall", "ToolError", "Unavailable", "View", "consume",
    "hook", "produce", "publish_weights", "run_program", "tool",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'gymq' has no attribute {name!r}")
    value = getattr(import_module(f"gymq.{home}"), name)
    globals()[name] = value
    return value
