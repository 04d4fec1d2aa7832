"""What a person writes to make an environment: a class with tools and a verifier.

Any hook may be `async def` (it then runs on the worker's loop and must not block) or `def` (it runs in a thread).
Hooks and tools ask for what they need by parameter name: `task` (a `Task`), `messages` (a `Conversation`) and
`state` (this rollout's state), and `session` (its live object, see `Environment`). A tool's other parameters are the model's
arguments. A `verify` or `respond` that returned an
`Ask` is called again with the model's `answer` (a `Message`) and its own `note`, both None at first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, TypeVar

import msgspec

from gymq.api.tools import ASKED, INJECTED, Tool, build_tool, wanted
from gymq.errors import UsageError
from gymq.wire.message import Message

#: Seconds that a tool, a hook or a verifier may take unless it says otherwise.
DEFAULT_TIMEOUT = 60.0

#: Methods that gymq itself calls.
HOOKS = frozenset({"open", "respond", "verify", "close", "session", "policy"})

#: Hooks that may ask a model.
ASKING = frozenset({"respond", "verify"})

F = TypeVar("F", bound=Callable[..., Any])


class Opening(msgspec.Struct):
    """How a rollout begins, as `open` returns it.

    Args:
        state: the initial state, an instance of the environment's `State`.
        messages: messages to append to the task's own.
        tools: chat-completions tools to declare instead of the task's or the environment's; None keeps those.
    """

    state: Any = None
    messages: list[Message] = []
    tools: list[dict[str, Any]] | None = None


class Response(msgspec.Struct):
    """What an environment says between turns, as `respond` returns it.

    Args:
        messages: what it says; a plain string returned by `respond` stands for one user message.
        done: True: the conversation is over, after these messages.
    """

    messages: list[Message] = []
    done: bool = False


class Ask(msgspec.Struct):
    """What `verify` or `respond` returns to ask a model first; gymq asks it, then calls the hook again.

    Args:
        messages: the prompt; the rollout's own messages are not added.
        note: handed back to the hook beside the answer; anything that msgpack can hold.
        sampling: sampling parameters of this request, under chat-completions names.
        model: the SPEC of a model that a worker serves; None: the run's judge.
    """

    messages: list[Message]
    note: Any = None
    sampling: dict[str, Any] = {}
    model: str | None = None


class Score(msgspec.Struct):
    """A verifier's verdict.

    Args:
        reward: a number; None: unavailable, with the reason in `reason`.
        rewards: the reward's components by name.
        metrics: other numbers by name.
        reason: why there is no reward.
    """

    reward: float | None = None
    rewards: dict[str, float] = {}
    metrics: dict[str, float] = {}
    reason: str = ""


class HookSpec(msgspec.Struct, frozen=True):
    """How a hook is to be called; see `hook` for the flags; `session`: it asks for the live session."""

    present: bool = False
    isolated: bool = False
    timeout: float = DEFAULT_TIMEOUT
    session: bool = False


class ToolSpec(msgspec.Struct, frozen=True):
    """What agents must know of a tool; see `tool` for the flags; `session`: it asks for the live session."""

    name: str
    schema: dict[str, Any]
    read_only: bool = False
    isolated: bool = False
    once: bool = False
    timeout: float = DEFAULT_TIMEOUT
    session: bool = False


class EnvironmentSpec(msgspec.Struct, frozen=True):
    """What agents must know of an environment, so that they need not import it; stands in the run's record."""

    name: str
    tools: list[ToolSpec] = []
    open: HookSpec = HookSpec()
    respond: HookSpec = HookSpec()
    verify: HookSpec = HookSpec()
    close: HookSpec = HookSpec()
    session: HookSpec = HookSpec()


def tool(
    *, read_only: bool = False, isolated: bool = False, once: bool = False, timeout: float = DEFAULT_TIMEOUT
) -> Callable[[F], F]:
    """Make a method a tool that the model can call.

    Args:
        read_only: it does not change the rollout's state: it may run beside other read-only calls of a turn.
        isolated: it may hang, crash or eat memory: it runs in an executor process that can be killed.
        once: it must not be run twice, whatever dies: after a death its outcome is reported as unknown.
        timeout: seconds it may take.
    """

    def mark(function: F) -> F:
        function.__gymq_tool__ = dict(read_only=read_only, isolated=isolated, once=once, timeout=timeout)  # type: ignore[attr-defined]
        return function

    return mark


def hook(*, isolated: bool = False, timeout: float = DEFAULT_TIMEOUT) -> Callable[[F], F]:
    """Say how `open`, `respond`, `verify`, `close` or `session` is to be run: isolated in an executor, seconds it may take."""

    def mark(function: F) -> F:
        function.__gymq_hook__ = dict(isolated=isolated, timeout=timeout)  # type: ignore[attr-defined]
        return function

    return mark


class Environment:
    """Base of all environments. One instance serves many rollouts at once: what belongs to one rollout is in its state.

    A subclass sets `name`, may set `State` (a `msgspec.Struct`), and defines any of these, each optional:
    `open(self, task) -> Opening`, tools, `respond(self, messages, ...) -> str | Response | Ask`,
    `verify(self, task, messages, ...) -> float | Score | Ask | None`, `close(self, state, ...)`,
    `session(self, task, state) -> Any`, which makes the rollout's live object (a simulator, a browser) from its task and state
    for those that name a parameter `session`, and `policy(self, messages, task) -> Message`, which plays the model for demos
    and tests (model `scripted`). `sessions` says how many live objects one worker keeps while nobody uses them.
    """

    name: ClassVar[str] = ""
    State: ClassVar[type[msgspec.Struct] | None] = None
    tools: ClassVar[dict[str, Tool]] = {}
    sessions: ClassVar[int] = 256

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found = dict(cls.tools)
        for attribute, value in vars(cls).items():
            flags = getattr(value, "__gymq_tool__", None)
            if flags is not None:
                if attribute in HOOKS:
                    raise UsageError(f"{cls.__name__}.{attribute} is a hook and cannot be a tool: no model may call it")
                found[attribute] = build_tool(attribute, value, flags)
        cls.tools = found
        cls._check_session()

    @classmethod
    def spec(cls) -> EnvironmentSpec:
        """Describe this environment to agents."""
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
        """What a hook asks for by its parameters: `task`, `messages`, `state`, `answer`, `note`; nothing if it is not there."""
        function = getattr(cls, hook, None)
        if function is None:
            return frozenset()
        return wanted(
            function, INJECTED | ASKED if hook in ASKING else INJECTED - {"session"} if hook == "session" else INJECTED
        )

    @classmethod
    def _hook(cls, name: str) -> HookSpec:
        function = getattr(cls, name, None)
        if function is None:
            return HookSpec()
        flags = getattr(function, "__gymq_hook__", {})
        return HookSpec(present=True, session="session" in wanted(function), **flags)

    @classmethod
    def _check_session(cls) -> None:
        """Refuse who asks for a session where there can be none.

        Raises:
            UsageError: it is isolated, and the session lives in another process; or there is no session to ask for.
        """
        isolated = {name: one.flags["isolated"] for name, one in cls.tools.items() if "session" in one.wants}
        for name in sorted(HOOKS - {"policy", "session"}):
            function = getattr(cls, name, None)
            if function is not None and "session" in wanted(function):
                isolated[name] = getattr(function, "__gymq_hook__", {}).get("isolated", False)
        build = getattr(cls, "session", None)
        if getattr(build, "__gymq_hook__", {}).get("isolated"):
            raise UsageError(f"{cls.__name__}.session cannot be isolated: what it makes lives in the resource worker")
        for name, apart in isolated.items():
            if apart:
                raise UsageError(
                    f"{cls.__name__}.{name} is isolated, in another process than the session; it cannot ask for it"
                )
            if build is None:
                raise UsageError(
                    f"{cls.__name__}.{name} asks for the session; define session(self, task, state), which makes it"
                )
