"""The interface of environments: a class with tools, hooks and a verifier.

A hook or tool is `async def` (it runs on the worker's loop and must not block) or `def` (it runs in a thread). It receives
what its parameters name: `task` (a `Task`), `messages` (a `Conversation`), `state` (this rollout's state) and `session`
(its live object, see `Environment`). A tool's other parameters are the model's arguments. A `verify` or `respond` that
returned an `Ask` is called again with the model's `answer` (a `Message`) and its own `note`; both are None at first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, TypeVar, overload

import msgspec

from gymq.api.definition import check_filled, check_secrets, check_spelling, check_state, own_functions, refusal
from gymq.api.tools import ASKED, INJECTED, Tool, build_tool, wanted
from gymq.errors import UsageError
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Message

#: Seconds that a tool, a hook or a verifier may take by default.
DEFAULT_TIMEOUT = 60.0

_FILLED = INJECTED - {"self"}

#: Methods that gymq calls and no model may, each with the parameters that it fills in by their names.
HOOKS: dict[str, frozenset[str]] = {
    "open": _FILLED,
    "respond": _FILLED | ASKED,
    "verify": _FILLED | ASKED,
    "close": _FILLED,
    "session": _FILLED - {"session"},
    "policy": frozenset({"messages", "task"}),
}

#: Hooks that `hook` can say something of: `policy` runs in a model worker.
_MARKED = frozenset(HOOKS) - {"policy"}

F = TypeVar("F", bound=Callable[..., Any])


class Opening(msgspec.Struct):
    """The beginning of a rollout, as `open` returns it.

    Args:
        state: the initial state, an instance of the environment's `State`.
        messages: messages beside the task's own. Those of the role `system` or `developer` that stand first go before
            the task's messages (into the system message of a task that has one, before its text), the others behind them.
        tools: chat-completions tools to declare instead of the task's or the environment's; None keeps those.
    """

    state: Any = None
    messages: list[Message] = []
    tools: list[JsonObject] | None = None


class Response(msgspec.Struct):
    """The environment's words between turns, as `respond` returns them.

    Args:
        messages: the messages; a plain string returned by `respond` stands for one user message.
        done: True: the conversation ends after these messages.
    """

    messages: list[Message] = []
    done: bool = False


class Ask(msgspec.Struct):
    """A question to a model, as `verify` or `respond` returns it; gymq asks it, then calls the hook again.

    Args:
        messages: the prompt; the rollout's own messages are not added.
        note: handed back to the hook beside the answer; any value that msgpack can hold.
        sampling: sampling parameters of this request, under chat-completions names.
        model: the SPEC of a model that a worker serves; None: the run's judge.
    """

    messages: list[Message]
    note: Any = None
    sampling: JsonObject = {}
    model: str | None = None


class Score(msgspec.Struct):
    """A verifier's verdict.

    Args:
        reward: a finite number; None: no reward can be given, for the cause in `reason`.
        rewards: the reward's components by name.
        metrics: other numbers by name.
        reason: the cause of a missing reward.
    """

    reward: float | None = None
    rewards: dict[str, float] = {}
    metrics: dict[str, float] = {}
    reason: str = ""


class HookSpec(msgspec.Struct, frozen=True):
    """A hook as agents know it.

    Args:
        present: whether the environment defines it.
        isolated, timeout: see `hook`.
        session: whether it asks for the live session.
    """

    present: bool = False
    isolated: bool = False
    timeout: float = DEFAULT_TIMEOUT
    session: bool = False


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as agents know it.

    Args:
        name: the tool's name.
        schema: its declaration as a chat-completions tool.
        read_only, isolated, once, timeout: see `tool`.
        session: whether it asks for the live session.
    """

    name: str
    schema: JsonObject
    read_only: bool = False
    isolated: bool = False
    once: bool = False
    timeout: float = DEFAULT_TIMEOUT
    session: bool = False


class EnvironmentSpec(msgspec.Struct, frozen=True):
    """An environment as agents know it without importing it; part of the run's record."""

    name: str
    tools: list[ToolSpec] = []
    open: HookSpec = HookSpec()
    respond: HookSpec = HookSpec()
    verify: HookSpec = HookSpec()
    close: HookSpec = HookSpec()
    session: HookSpec = HookSpec()

    @property
    def needs_executor(self) -> bool:
        """Whether the environment has calls that must run in a process that can be killed."""
        hooks = (self.open, self.respond, self.verify, self.close)
        return any(tool.isolated for tool in self.tools) or any(hook.isolated for hook in hooks)


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *, read_only: bool = False, isolated: bool = False, once: bool = False, timeout: float = DEFAULT_TIMEOUT
) -> Callable[[F], F]: ...
def tool(
    function: F | None = None,
    /,
    *,
    read_only: bool = False,
    isolated: bool = False,
    once: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
) -> F | Callable[[F], F]:
    """Make a method a tool that the model can call; its schema comes from type hints and docstring.

        @tool
        async def get_weather(self, city: str) -> str: ...

        @tool(read_only=True, timeout=5)
        async def get_time(self, city: str) -> str: ...

    Args:
        function: the method, where `tool` is written without parentheses.
        read_only: it leaves the rollout's state as it is, and may run beside other read-only calls of a turn.
        isolated: it may hang, crash or eat memory: it runs in an executor process that can be killed.
        once: it must not be run twice, whatever dies: after a death its outcome is reported as unknown.
        timeout: seconds it may take.

    Raises:
        UsageError: what is marked is no function.
    """
    return _mark("tool", function, dict(read_only=read_only, isolated=isolated, once=once, timeout=timeout))


@overload
def hook(function: F, /) -> F: ...
@overload
def hook(*, isolated: bool = False, timeout: float = DEFAULT_TIMEOUT) -> Callable[[F], F]: ...
def hook(function: F | None = None, /, *, isolated: bool = False, timeout: float = DEFAULT_TIMEOUT) -> F | Callable[[F], F]:
    """Set how `open`, `respond`, `verify`, `close` or `session` runs.

    Args:
        function: the method, where `hook` is written without parentheses.
        isolated: it runs in an executor process that can be killed.
        timeout: seconds it may take.

    Raises:
        UsageError: what is marked is no function.
    """
    return _mark("hook", function, dict(isolated=isolated, timeout=timeout))


def _mark(noun: str, function: F | None, flags: dict[str, Any]) -> F | Callable[[F], F]:
    """Attach flags to a function, or return the decorator that does."""

    def mark(function: F) -> F:
        if not callable(function):
            raise UsageError(f"@{noun}({function!r}) marks no method; write @{noun}, or @{noun}() with options by name")
        setattr(function, f"__gymq_{noun}__", flags)
        return function

    return mark if function is None else mark(function)


class Environment:
    """Base of all environments. One instance serves many rollouts at once: data of one rollout belongs in its state.

    A subclass sets `name`, may set `State` (a `msgspec.Struct`), and defines any of these, each optional:

    * tools, marked by `@tool`,
    * `open(self, task) -> Opening`,
    * `respond(self, messages, ...) -> str | Response | Ask`: the environment speaks between turns,
    * `verify(self, task, messages, ...) -> float | Score | Ask | None`: the reward,
    * `close(self, state, ...)`: runs after the rollout's end,
    * `session(self, task, state) -> Any`: makes the rollout's live object (a simulator, a browser) from its task and state,
      for hooks and tools with a parameter `session`,
    * `policy(self, messages, task) -> Message`: plays the model for demos and tests (model `scripted`).

    It is registered as an entry point of the group `gymq.environments`.

        class Echo(Environment):
            name = "echo"

            async def verify(self, task: Task, messages: Conversation) -> float:
                return float(messages.last.text == task["word"])
    """

    #: The name by which tasks and runs choose this environment.
    name: ClassVar[str] = ""

    #: The type of a rollout's state; None: rollouts have none.
    State: ClassVar[type[msgspec.Struct] | None] = None

    #: The tools by name; collected from the methods that `@tool` marks.
    tools: ClassVar[dict[str, Tool]] = {}

    #: Live sessions that one worker keeps while they are idle.
    sessions: ClassVar[int] = 256

    #: The variables with secrets that it reads, such as the key of a search: its resource and executor workers get them, and no
    #: other secret of the environment that they are started in.
    secrets: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the tools, and refuse what would fail or be passed over later.

        Raises:
            UsageError: with file, line and remedy.
        """
        super().__init_subclass__(**kwargs)
        tools = dict(cls.tools)
        for attribute, function in own_functions(cls, Environment):
            flags = getattr(function, "__gymq_tool__", None)
            if flags is not None:
                if attribute in HOOKS:
                    raise refusal(cls, attribute, "is a hook and cannot be a tool: no model may call it; remove @tool")
                tools[attribute] = build_tool(cls, attribute, flags)
        cls.tools = tools
        for name, filled in HOOKS.items():
            if getattr(cls, name, None) is not None:
                check_filled(cls, name, filled)
        check_spelling(cls, Environment, HOOKS, tools)
        for attribute, function in own_functions(cls, Environment):
            if attribute not in _MARKED and hasattr(function, "__gymq_hook__"):
                raise refusal(cls, attribute, f"is marked @hook, which is for {', '.join(sorted(_MARKED))}; remove the mark")
        for attribute, function in own_functions(cls, Environment):
            if attribute not in _MARKED and hasattr(function, "__gymq_hook__"):
                raise refusal(cls, attribute, f"is marked @hook, which is for {', '.join(sorted(_MARKED))}; remove the mark")
        if cls.State is not None:
            check_state(cls, cls.State)
        check_secrets(cls, cls.secrets)
        cls._check_session()

    @classmethod
    def spec(cls) -> EnvironmentSpec:
        """Return the description that agents work from."""
        return EnvironmentSpec(
            name=cls.name,
            tools=[ToolSpec(name=t.name, schema=t.schema, session="session" in t.wants, **t.flags) for t in cls.tools.values()],
            open=cls._hook("open"),
            respond=cls._hook("respond"),
            verify=cls._hook("verify"),
            close=cls._hook("close"),
            session=cls._hook("session"),
        )

    @classmethod
    @cache
    def wants(cls, hook: str) -> frozenset[str]:
        """Return the injected parameters of a hook: `task`, `messages`, `state`, `answer`, `note`; empty without the hook."""
        function = getattr(cls, hook, None)
        if function is None:
            return frozenset()
        return wanted(function, HOOKS[hook])

    @classmethod
    def _hook(cls, name: str) -> HookSpec:
        function = getattr(cls, name, None)
        if function is None:
            return HookSpec()
        flags = getattr(function, "__gymq_hook__", {})
        return HookSpec(present=True, session="session" in wanted(function), **flags)

    @classmethod
    def _check_session(cls) -> None:
        """Refuse a parameter `session` where no session can be.

        Raises:
            UsageError: the method is isolated, in another process than the session; or the class defines no `session`.
        """
        isolated = {name: tool.flags["isolated"] for name, tool in cls.tools.items() if "session" in tool.wants}
        for name in sorted(_MARKED - {"session"}):
            function = getattr(cls, name, None)
            if function is not None and "session" in wanted(function):
                isolated[name] = getattr(function, "__gymq_hook__", {}).get("isolated", False)
        build = getattr(cls, "session", None)
        if getattr(build, "__gymq_hook__", {}).get("isolated"):
            raise refusal(cls, "session", "cannot be isolated: what it makes is in the resource worker; remove isolated=True")
        for name, apart in isolated.items():
            if apart:
                raise refusal(cls, name, "is isolated, in another process than the session; it cannot ask for it")
            if build is None:
                raise refusal(cls, name, "asks for the session; define session(self, task, state), which makes it")
