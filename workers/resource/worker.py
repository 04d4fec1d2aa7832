"""The resource role, which serves environments' calls: open, tools, respond, verify, close."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import msgspec

from gymq import plugins
from gymq.api.environment import EnvironmentSpec
from gymq.errors import CallError, GymqError
from gymq.loop_clock import TimeLimit
from gymq.runtime.actor import Actor
from gymq.runtime.call_worker import CallWorker
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.scripts import LoadRequest, OnceOutcome
from gymq.wire.calls import Call, ToolResult, encode
from gymq.wire.message import Conversation
from gymq.wire.task import Task, encode_task

from ..invocation import call_terms
from ..invocation.invoke import build, invoke
from ..invocation.result_encoding import callable_name
from ..invocation.sessions import Session, Sessions
from .isolated import IsolatedCalls
from .threads import MAX_THREADS, ToolThreads, watch_loop

#: Calls that one resource worker has in flight by default.
DEFAULT_CONCURRENCY = 1024

log = logging.getLogger(__name__)

#: The result, for the model, of a `once` call whose worker died.
UNKNOWN = "Error: the outcome of this call is unknown: it was started and the process died. It was not run again."


class ResourceWorker(CallWorker):
    """Serves environments; see `Actor`. Options: `environments` (names and FILE.py:CLASS with commas; default: all installed),
    `concurrency`."""

    role = "resource"
    private = True  # a mailbox of its own, for calls of rollouts whose live session it has

    def __init__(
        self, settings: Settings, options: RoleOptions, *, suspects_only: bool = False, threads: ToolThreads | None = None
    ) -> None:
        # Before any mail is taken; and a message must not choose what is imported.
        self._specs = {name: type(made).spec() for name, made in plugins.load_environments(options.get("environments")).items()}
        capacity = int(options.get("concurrency") or DEFAULT_CONCURRENCY)
        super().__init__(settings, options, capacity=capacity, suspects_only=suspects_only)
        self._threads = threads or ToolThreads()
        self._isolated = IsolatedCalls(self.connection, settings.liveness)
        self._sessions = Sessions(self._threads, self.counts)

    @classmethod
    def on_shards(cls, settings: list[Settings], options: RoleOptions) -> list[Actor]:
        """Make an actor for each shard, all with one pool of threads; see `Actor`.

        Args:
            settings: where Redis is.
            options: the command line's options.
        """
        threads = ToolThreads()
        return [cls(one, options, threads=threads) for one in settings]

    def mailboxes(self) -> list[str]:
        """Return one mailbox for each environment."""
        return [f"resource:{name}" for name in self._specs]

    async def prepare(self) -> None:
        """Watch the loop, so that a blockage is named before other workers take this one for dead."""
        self._end_watch = watch_loop(self.settings.liveness / 2)

    async def close(self) -> None:
        """Close the sessions, and end the watch over the loop."""
        await self._sessions.end()
        self._end_watch()

    async def duties(self) -> None:
        """Close the sessions of rollouts that have ended; see `CallWorker`."""
        await super().duties()
        due = self._sessions.idle()
        loaded = await asyncio.gather(*(self.loads.ask(LoadRequest(rollout, -1, run, -1)) for rollout, run in due))
        for (rollout, _), stored in zip(due, loaded, strict=True):
            if stored.version is None:
                self._sessions.drop(rollout)

    async def forget(self) -> None:
        """Drop what was read, and close the sessions: other workers may have changed the states that they stand for."""
        await super().forget()
        self._sessions.drop_all()

    def stats(self) -> dict[str, Any]:
        """See `Actor`."""
        return super().stats() | {"sessions": len(self._sessions)}

    async def serve(self, call: Call) -> bytes | None:
        """Run the hook or tool; see `CallWorker`."""
        spec = self._specs.get(call.environment)
        if spec is None:
            raise CallError("environment", f"this worker does not serve environment {call.environment[:60]!r}")
        timeout, isolated, once = call_terms.limits(spec, call)
        wants = call_terms.wants(call)
        opening = call.kind == "open"  # then the conversation has not begun: the messages are the task's
        task = await self.task(call) if "task" in wants or (opening and "messages" in wants) else None
        messages = (await self.conversation(call)).messages if "messages" in wants and not opening else []
        if call.has_state and call.state is None:
            call.state = await self.environment_state(call)
        if once and not await self._first(call):
            return encode(ToolResult(msgspec.json.encode(UNKNOWN), error=True))
        if isolated:
            await self._isolate(call, task, messages, timeout)
            return None  # the executor has replied
        conversation = Conversation(messages)
        try:
            if "session" not in wants:
                return await self._invoke(call, task, conversation, timeout)
            most = type(plugins.environment(call.environment)).sessions
            async with self._sessions.use(call, most, lambda: self._build(call, task, conversation, spec)) as session:
                return await self._invoke(call, task, conversation, timeout, session)
        finally:
            if call.kind in ("verify", "close"):
                self.done_with(call)
            if call.kind == "close":
                self._sessions.drop(call.rollout)

    async def _invoke(
        self, call: Call, task: Task | None, messages: Conversation, timeout: float, session: Session | None = None
    ) -> bytes:
        try:
            async with TimeLimit(timeout):
                return await invoke(call, task, messages, threads=self._threads, session=session)
        except TimeoutError:
            self._given_up(call)
            raise CallError("timeout", f"{callable_name(call)} took longer than {timeout:g} s") from None

    async def _build(self, call: Call, task: Task | None, messages: Conversation, spec: EnvironmentSpec) -> object:
        limit = spec.session.timeout
        try:
            async with TimeLimit(limit):
                late = partial(self._sessions.close, call.environment)
                return await build(call, task, messages, threads=self._threads, late=late)
        except TimeoutError:
            self._given_up(call)
            raise CallError("timeout", f"{call.environment}.session took longer than {limit:g} s") from None

    def interruptible(self, call: Call) -> bool:
        """See `CallWorker`; isolated calls are killed where they run."""
        return super().interruptible(call) and call not in self._isolated

    def _given_up(self, call: Call) -> None:
        self._threads.given_up(call)
        if self._threads.lost and self.failure is None:
            hanging = ", ".join(sorted(set(self._threads.stuck.values())))
            failure = GymqError(
                f"{len(self._threads.stuck)} of {MAX_THREADS} threads hang in {hanging}, which met its limit and runs on: "
                "say isolated=True there, and it can be killed. This worker ends, so that another takes its place"
            )
            log.error("draining: %s", failure)
            self.leave(failure, at_once=False, to_blame=True)

    async def _isolate(self, call: Call, task: Task | None, messages: list[bytes] | None, timeout: float) -> None:
        call.task = None if task is None else encode_task(task)
        call.messages, call.seen, call.length = messages or [], 0, len(messages or [])
        await self._isolated.run(call, timeout)

    async def _first(self, call: Call) -> bool:
        begun = await self.connection.insist(scripts.begin_once(call.rollout, call.step, call.n, self.worker))
        if begun is OnceOutcome.NOT_PENDING:
            raise CallError("cancelled", "the rollout has ended meanwhile")
        return begun is OnceOutcome.BEGUN
