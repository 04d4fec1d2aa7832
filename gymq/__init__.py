"""gymq: agent rollouts on message queues.

Public names are imported on first use, so that `import gymq` is cheap in processes that need few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # isort: off
    from gymq.api.agent import (
        Agent as Agent,
        CallTool as CallTool,
        Extend as Extend,
        Finish as Finish,
        Generate as Generate,
        Respond as Respond,
        View as View,
    )
    from gymq.api.backend import Backend as Backend, Request as Request
    from gymq.api.environment import (
        Ask as Ask,
        Environment as Environment,
        Opening as Opening,
        Response as Response,
        Score as Score,
        hook as hook,
        tool as tool,
    )
    from gymq.client.consumer import Results as Results, consume as consume
    from gymq.client.producer import Producer as Producer, produce as produce, produce_async as produce_async
    from gymq.client.publish_weights import (
        publish_weights as publish_weights,
        publish_weights_async as publish_weights_async,
    )
    from gymq.client.sink_loop import Sink as Sink
    from gymq.errors import GymqError as GymqError, TaskError as TaskError, ToolError as ToolError, Unavailable as Unavailable
    from gymq.process.sandbox import ProgramResult as ProgramResult, run_program as run_program
    from gymq.script.run import run as run, run_async as run_async
    from gymq.script.run_result import RunResult as RunResult
    from gymq.settings import Settings as Settings
    from gymq.store.runs import RunConfig as RunConfig
    from gymq.wire.message import Conversation as Conversation, Function as Function, Message as Message, ToolCall as ToolCall
    from gymq.wire.rollout import Group as Group, Rollout as Rollout
    from gymq.wire.task import Task as Task
    from gymq.wire.token_branches import Branch as Branch
    # isort: on

#: The public names, each with the module of gymq that defines it; every other name is private by convention.
PUBLIC = {
    "Agent": "api.agent",
    "Ask": "api.environment",
    "Backend": "api.backend",
    "Branch": "wire.token_branches",
    "CallTool": "api.agent",
    "Conversation": "wire.message",
    "Environment": "api.environment",
    "Extend": "api.agent",
    "Finish": "api.agent",
    "Function": "wire.message",
    "Generate": "api.agent",
    "Group": "wire.rollout",
    "GymqError": "errors",
    "Message": "wire.message",
    "Opening": "api.environment",
    "Producer": "client.producer",
    "ProgramResult": "process.sandbox",
    "Request": "api.backend",
    "Respond": "api.agent",
    "Response": "api.environment",
    "Results": "client.consumer",
    "Rollout": "wire.rollout",
    "RunConfig": "store.runs",
    "RunResult": "script.run_result",
    "Score": "api.environment",
    "Settings": "settings",
    "Sink": "client.sink_loop",
    "Task": "wire.task",
    "TaskError": "errors",
    "ToolCall": "wire.message",
    "ToolError": "errors",
    "Unavailable": "errors",
    "View": "api.agent",
    "consume": "client.consumer",
    "hook": "api.environment",
    "produce": "client.producer",
    "produce_async": "client.producer",
    "publish_weights": "client.publish_weights",
    "publish_weights_async": "client.publish_weights",
    "run": "script.run",
    "run_async": "script.run",
    "run_program": "process.sandbox",
    "tool": "api.environment",
}

__all__ = [*PUBLIC]  # noqa: PLE0604


def __dir__() -> list[str]:
    return [*PUBLIC]


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'gymq' has no attribute {name!r}")
    value: object = getattr(import_module(f"gymq.{PUBLIC[name]}"), name)
    globals()[name] = value
    return value
