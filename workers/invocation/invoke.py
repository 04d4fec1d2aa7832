"""The invocation of one call: the environment's tool or hook, with its injected parameters, and the encoded result.

The resource worker invokes many calls at once on its loop, with threads for functions that are not `async`; the executor
invokes one call at a time in a process of its own, without threads.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from types import FrameType
from typing import Any

import msgspec

from gymq import plugins
from gymq.api.environment import Ask, Environment, Opening, Response, Score
from gymq.errors import CallError, FaultKind, GymqError, TaskError, ToolError
from gymq.wire.calls import Call, Opened, Responded, Scored, ToolResult, encode
from gymq.wire.message import Conversation, Message, decode_message
from gymq.wire.task import Task

from . import result_encoding
from .outage import is_outage
from .sessions import Session

#: Characters of an exception's text in a fault, which is shown on one line.
MAX_TEXT = 500


async def invoke(
    call: Call,
    task: Task | None,
    messages: Conversation | None,
    *,
    threads: Executor | None = None,
    session: Session | None = None,
) -> bytes:
    """Run a call and return its encoded value: `ToolResult`, `Opened`, `Responded`, `Scored`, or nothing for `close`.

    Args:
        call: the call, with its state.
        task: its task; None: absent, a fault if the function asks for it.
        messages: the conversation so far; None: absent, likewise; of no account in `open`, which gets the task's.
        threads: runs functions that are not `async`; None: they block the loop.
        session: the rollout's live session; None: absent, likewise.

    Raises:
        CallError: `environment`, `verifier`, `unavailable`, `task`, `memory` or `result_too_large`.
    """
    value = await _Invocation(_environment(call), call, task, messages, threads, session).value()
    if len(value) > result_encoding.MAX_RESULT_BYTES:
        raise result_encoding.too_large(call, len(value))
    return value


async def build(
    call: Call, task: Task | None, messages: Conversation | None, *, threads: Executor, late: Callable[[object], None]
) -> object:
    """Make a rollout's live session from its task and state, by the environment's hook `session`.

    Args:
        call, task, messages, threads: see `invoke`.
        late: receives a session that a thread finishes after the cancellation of this coroutine.

    Raises:
        CallError: as `invoke`.
    """
    environment = _environment(call)
    session = asyncio.ensure_future(_Invocation(environment, call, task, messages, threads, None).hook("session"))
    if inspect.iscoroutinefunction(getattr(environment, "session", None)):
        return await session
    try:
        return await asyncio.shield(session)
    except asyncio.CancelledError:

        def hand_over(_: object) -> None:
            if not session.cancelled() and session.exception() is None:
                late(session.result())

        session.add_done_callback(hand_over)
        raise


def _environment(call: Call) -> Environment:
    try:
        return plugins.environment(call.environment)
    except GymqError as error:
        raise CallError("environment", str(error)) from error


class _Invocation:
    """One call while it runs; see `invoke` for the arguments."""

    def __init__(
        self,
        environment: Environment,
        call: Call,
        task: Task | None,
        messages: Conversation | None,
        threads: Executor | None,
        session: Session | None,
    ) -> None:
        self.environment = environment
        self.call = call
        if call.kind == "open" and task is not None:
            messages = task.messages  # the conversation has not begun
        self.injectable: dict[str, Any] = {"task": task, "messages": messages}
        if call.answer is not None:
            self.injectable["answer"] = decode_message(call.answer)
        if call.note is not None:
            self.injectable["note"] = msgspec.msgpack.decode(call.note)
        self.threads = threads
        self.session = session

    async def value(self) -> bytes:
        """Run the call and return its encoded value."""
        match self.call.kind:
            case "tool":
                return encode(await self.tool())
            case "open":
                return encode(await self.open())
            case "respond":
                return encode(await self.respond())
            case "verify":
                return encode(await self.verify())
            case "close":
                await self.hook("close")
                return b""
            case _:
                raise CallError("environment", f"a resource cannot answer a call of kind {self.call.kind!r}")

    async def tool(self) -> ToolResult:
        tools = type(self.environment).tools
        tool = tools.get(self.call.name)
        try:
            if tool is None:
                known = ", ".join(sorted(tools)) or "none"
                raise ToolError(f"Unknown tool {self.call.name!r}. Known tools: {known}.")
            arguments = tool.arguments(self.call.arguments)
            result = await self.function(getattr(self.environment, tool.name), tool.wants, arguments)
        except ToolError as error:
            # Its changes of the state before the failure are dropped.
            return ToolResult(content=result_encoding.json(self.call, "its error", str(error)), error=True)
        state = None if tool.flags.get("read_only") else self.state()
        self.settle_session(state)
        return ToolResult(content=result_encoding.content(self.call, result), state=state)

    async def open(self) -> Opened:
        opening = await self.hook("open")
        if opening is None:
            return Opened()
        if not isinstance(opening, Opening):
            raise CallError("environment", f"open returned {type(opening).__name__}; it must return an Opening")
        state_type = self.environment.State
        if opening.state is not None and (state_type is None or not isinstance(opening.state, state_type)):
            what = "the environment has no State" if state_type is None else f"State is {state_type.__name__}"
            raise CallError("environment", f"open gave a state of type {type(opening.state).__name__}, but {what}")
        state = opening.state if opening.state is not None or state_type is None else self.load_state()
        data = None if state is None else result_encoding.state(state)
        self.settle_session(data)
        return Opened(
            state=data,
            messages=result_encoding.encode_messages(self.call, opening.messages),
            tools=None if opening.tools is None else result_encoding.json(self.call, "its tools", opening.tools),
        )

    async def respond(self) -> Responded:
        response = await self.hook("respond")
        state = self.state()
        self.settle_session(state)
        if isinstance(response, Ask):
            return Responded(state=state, ask=result_encoding.asked(self.call, response))
        if isinstance(response, str):
            response = Response(messages=[Message(role="user", content=response)])
        if not isinstance(response, Response):
            kind = type(response).__name__
            raise CallError("environment", f"respond returned {kind}; it must return text, a Response or an Ask")
        messages = result_encoding.encode_messages(self.call, response.messages)
        return Responded(messages=messages, done=bool(response.done), state=state)

    async def verify(self) -> Scored:
        verdict = await self.hook("verify")
        self.settle_session(None)
        if verdict is None:
            return Scored(reason="the verifier gave no reward")
        if isinstance(verdict, Ask):
            return Scored(ask=result_encoding.asked(self.call, verdict))
        if not isinstance(verdict, Score):
            return Scored(reward=result_encoding.number("the reward", verdict))
        return Scored(
            reward=None if verdict.reward is None else result_encoding.number("the reward", verdict.reward),
            rewards={name: result_encoding.number(f"reward {name!r}", value) for name, value in verdict.rewards.items()},
            metrics={name: result_encoding.number(f"metric {name!r}", value) for name, value in verdict.metrics.items()},
            reason=verdict.reason,
        )

    async def hook(self, name: str) -> Any:
        """Call a hook if the environment has it; a ToolError becomes a fault, since no model hears it."""
        function = getattr(self.environment, name, None)
        if function is None:
            return None
        try:
            return await self.function(function, type(self.environment).wants(name), {})
        except ToolError as error:
            raise CallError("verifier" if name == "verify" else "environment", self.one_line(error)) from error

    async def function(self, function: Callable[..., Any], wants: frozenset[str], arguments: dict[str, object]) -> Any:
        """Call a function of the environment's author; every exception but ToolError and CallError becomes a fault.

        Args:
            function: a hook or a tool.
            wants: the injected parameters that it names.
            arguments: its other arguments.
        """
        keywords = dict(arguments)
        for name in wants:
            if name == "session":
                if self.session is None:
                    raise CallError("environment", f"call {self.call.id} came without its session")
                keywords[name] = self.session.take()
                continue
            keywords[name] = self.load_state() if name == "state" else self.injectable.get(name)
            if name in ("task", "messages") and keywords[name] is None:
                raise CallError("environment", f"call {self.call.id} came without its {name}")
        kind: FaultKind = "verifier" if self.call.kind == "verify" else "environment"
        try:
            if self.threads is not None and not inspect.iscoroutinefunction(function):
                result = await self.thread(self.threads, function, keywords)
            else:
                result = function(**keywords)
            return await result if inspect.isawaitable(result) else result
        except (ToolError, CallError):
            raise
        except TaskError as error:
            raise CallError("task", self.one_line(error)) from error
        except MemoryError as error:
            raise CallError("memory", self.one_line(error)) from error
        except Exception as error:
            raise CallError("unavailable" if is_outage(error) else kind, self.one_line(error)) from error

    async def thread(self, threads: Executor, function: Callable[..., Any], keywords: dict[str, Any]) -> Any:
        """Call a function in a thread, which may hold the session beyond the call's time limit."""
        future = threads.submit(function, **keywords)
        if self.session is not None and "session" in keywords:
            loop, release = asyncio.get_running_loop(), self.session.release

            def release_soon(_: object) -> None:
                with suppress(RuntimeError):  # the loop was closed
                    loop.call_soon_threadsafe(release)

            self.session.users += 1
            future.add_done_callback(release_soon)
        return await asyncio.wrap_future(future)

    def load_state(self) -> Any:
        """Return the state, decoded once; a rollout without `open` starts with the State's defaults."""
        if "state" in self.injectable:
            return self.injectable["state"]
        state_type = self.environment.State
        state: Any = None
        if state_type is not None:
            try:
                state = state_type() if self.call.state is None else msgspec.msgpack.decode(self.call.state, type=state_type)
            except (TypeError, msgspec.DecodeError) as error:
                raise CallError("environment", f"{state_type.__name__} cannot be made from what is stored: {error}") from error
        self.injectable["state"] = state
        return state

    def settle_session(self, state: bytes | None) -> None:
        """Let the session stand for the state after the call; None: the call left the state as it was."""
        if self.session is not None:
            self.session.stands_for(self.call.state if state is None else state)

    def state(self) -> bytes | None:
        """Return the encoded state if the call changed it, else None."""
        state = self.injectable.get("state")
        if state is None:
            return None
        data = result_encoding.state(state)
        return None if data == self.call.state else data

    def one_line(self, error: BaseException) -> str:
        """Return an error as one line: type, text, and the innermost place in the environment's own module."""
        text = " ".join(str(error).split())[:MAX_TEXT]
        frames = list(traceback.walk_tb(error.__traceback__))
        own = [frame for frame in frames if frame[0].f_globals.get("__name__") == type(self.environment).__module__]
        where = f" ({_place(*(own or frames)[-1])})" if frames else ""
        return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def _place(frame: FrameType, line: int) -> str:
    """Return a place in code for a person; a notebook's cell is no file, and its code has a number for a name."""
    code = frame.f_code
    return (
        f"{os.path.basename(code.co_filename)}:{line}" if os.path.exists(code.co_filename) else f"{code.co_name}, line {line}"
    )


def called(frame: FrameType) -> Call | None:
    """Return the call whose function this frame calls, or None."""
    return frame.f_locals["self"].call if frame.f_code is _Invocation.function.__code__ else None
