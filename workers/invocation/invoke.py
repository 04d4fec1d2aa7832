"""One call of an environment: the tool or hook that it names, with what it asks for, and its result encoded.

The resource worker calls this for many calls at once on its loop, with threads for what is not `async`; the executor
calls it for one call at a time in a process of its own, without threads.
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

#: Characters of an exception's text that a fault keeps: it is shown on one line.
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
        task: its task; None: not at hand, an error if it is asked for.
        messages: the conversation so far; None: likewise.
        threads: where functions that are not `async` run; None: here and now, blocking the loop.
        session: the rollout's live session; None: nobody may ask for it.

    Raises:
        CallError: `environment`, `verifier`, `unavailable`, `task`, `memory` or `result_too_large`.
    """
    value = await _invoke(_Run(_environment(call), call, task, messages, threads, session))
    if len(value) > result_encoding.MAX_RESULT_BYTES:
        raise result_encoding.too_large(call, len(value))
    return value


async def build(
    call: Call, task: Task | None, messages: Conversation | None, *, threads: Executor, late: Callable[[Any], None]
) -> Any:
    """Make a rollout's live session from its task and state, by the environment's hook `session`.

    Args:
        call, task, messages, threads: see `invoke`.
        late: gets a session that a thread has made after this was cancelled.

    Raises:
        CallError: as `invoke`.
    """
    environment = _environment(call)
    made = asyncio.ensure_future(_Run(environment, call, task, messages, threads, None).hook("session"))
    if inspect.iscoroutinefunction(getattr(environment, "session", None)):
        return await made
    try:
        return await asyncio.shield(made)
    except asyncio.CancelledError:

        def over(_: Any) -> None:
            if not made.cancelled() and made.exception() is None:
                late(made.result())

        made.add_done_callback(over)
        raise


def _environment(call: Call) -> Environment:
    try:
        return plugins.environment(call.environment)
    except GymqError as error:
        raise CallError("environment", str(error)) from error


async def _invoke(run: _Run) -> bytes:
    call = run.call
    match call.kind:
        case "tool":
            return encode(await run.tool())
        case "open":
            return encode(await run.open())
        case "respond":
            return encode(await run.respond())
        case "verify":
            return encode(await run.verify())
        case "close":
            await run.hook("close")
            return b""
        case _:
            raise CallError("environment", f"a resource cannot answer a call of kind {call.kind!r}")


class _Run:
    """One call while it runs."""

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
        self.injectable: dict[str, Any] = {"task": task, "messages": messages}
        if call.answer is not None:
            self.injectable["answer"] = decode_message(call.answer)
        if call.note is not None:
            self.injectable["note"] = msgspec.msgpack.decode(call.note)
        self.threads = threads
        self.session = session

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
            # What it did to the state before it failed stays undone.
            return ToolResult(content=result_encoding.json(self.call, "its error", str(error)), error=True)
        state = None if tool.flags.get("read_only") else self.state()
        self.keep(state)
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
        self.keep(data)
        return Opened(
            state=data,
            messages=result_encoding.encode_messages(self.call, opening.messages),
            tools=None if opening.tools is None else result_encoding.json(self.call, "its tools", opening.tools),
        )

    async def respond(self) -> Responded:
        said = await self.hook("respond")
        state = self.state()
        self.keep(state)
        if isinstance(said, Ask):
            return Responded(state=state, ask=result_encoding.asked(self.call, said))
        if isinstance(said, str):
            said = Response(messages=[Message(role="user", content=said)])
        if not isinstance(said, Response):
            raise CallError("environment", f"respond returned {type(said).__name__}; it must return text, a Response or an Ask")
        return Responded(messages=result_encoding.encode_messages(self.call, said.messages), done=bool(said.done), state=state)

    async def verify(self) -> Scored:
        verdict = await self.hook("verify")
        self.keep(None)
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
        """Call a hook if the environment has it; it must raise no ToolError, there is no model to hear it."""
        function = getattr(self.environment, name, None)
        if function is None:
            return None
        try:
            return await self.function(function, type(self.environment).wants(name), {})
        except ToolError as error:
            raise CallError("verifier" if name == "verify" else "environment", self.said(error)) from error

    async def function(self, function: Callable[..., Any], wants: frozenset[str], arguments: dict[str, Any]) -> Any:
        """Call what the environment's author wrote; all that it raises but ToolError and CallError becomes a fault."""
        given = dict(arguments)
        for name in wants:
            if name == "session":
                if self.session is None:
                    raise CallError("environment", f"call {self.call.id} came without its session")
                given[name] = self.session.take()
                continue
            given[name] = self.load_state() if name == "state" else self.injectable.get(name)
            if name in ("task", "messages") and given[name] is None:
                raise CallError("environment", f"call {self.call.id} came without its {name}")
        kind: FaultKind = "verifier" if self.call.kind == "verify" else "environment"
        try:
            if self.threads is not None and not inspect.iscoroutinefunction(function):
                result = await self.thread(self.threads, function, given)
            else:
                result = function(**given)
            return await result if inspect.isawaitable(result) else result
        except (ToolError, CallError):
            raise
        except TaskError as error:
            raise CallError("task", self.said(error)) from error
        except MemoryError as error:
            raise CallError("memory", self.said(error)) from error
        except Exception as error:
            raise CallError("unavailable" if is_outage(error) else kind, self.said(error)) from error

    async def thread(self, threads: Executor, function: Callable[..., Any], given: dict[str, Any]) -> Any:
        """Call a function in a thread; it may use the session there for longer than anybody waits."""
        future = threads.submit(function, **given)
        if self.session is not None and "session" in given:
            loop, release = asyncio.get_running_loop(), self.session.release

            def over(_: Any) -> None:
                with suppress(RuntimeError):  # the loop was closed
                    loop.call_soon_threadsafe(release)

            self.session.users += 1
            future.add_done_callback(over)
        return await asyncio.wrap_future(future)

    def load_state(self) -> Any:
        """The state, decoded once; a rollout that was not opened starts with the State's defaults."""
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

    def keep(self, state: bytes | None) -> None:
        """What the call did is done: from now on the session stands for this state; None: for that which the call had."""
        if self.session is not None:
            self.session.stands_for(self.call.state if state is None else state)

    def state(self) -> bytes | None:
        """The state if the call changed it, encoded; else None."""
        state = self.injectable.get("state")
        if state is None:
            return None
        data = result_encoding.state(state)
        return None if data == self.call.state else data

    def said(self, error: BaseException) -> str:
        """One line for a person: type, text, and the innermost place in the environment's own file."""
        text = " ".join(str(error).split())[:MAX_TEXT]
        frames = traceback.extract_tb(error.__traceback__)
        own = inspect.getfile(type(self.environment))
        place = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1] if frames else None)
        where = "" if place is None else f" ({os.path.basename(place.filename)}:{place.lineno})"
        return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def called(frame: FrameType) -> Call | None:
    """The call whose function this frame calls."""
    return frame.f_locals["self"].call if frame.f_code is _Run.function.__code__ else None
