"""The player: it plays one rollout of an environment in this process, without Redis, workers or processes.

It is no second engine: the machine that decides, the invocation that calls hooks and tools, and the backends are those of the
workers. What it leaves out is what they have processes for: isolated calls run here, waits before new tries are passed
over, and nothing outlives the process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from gymq import plugins
from gymq.api.backend import Backend, Request
from gymq.api.environment import Environment
from gymq.errors import CallError, Fault, one_line
from gymq.ingest.row_parser import parse_row
from gymq.loop_clock import TimeLimit
from gymq.store.runs import RunConfig
from gymq.wire.calls import Call, Reply, decode_parameters, encode
from gymq.wire.ids import RolloutId
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Conversation
from gymq.wire.rollout import Rollout
from gymq.wire.task import Task

from ..invocation import call_terms
from ..invocation.invoke import build, invoke
from ..invocation.result_encoding import callable_name
from ..invocation.sessions import Sessions
from .answers import Answer, Answering, AnswersBackend
from .rollout import InlineRollout, calls

#: The name of the run that rollouts belong to.
_RUN = "inline"

#: Threads for hooks and tools that are not `async`: more calls of one turn wait for each other.
_THREADS = 8

#: Steps after which a rollout counts as endless; `max_turns` ends it much earlier, unless it waits again and again.
_MAX_STEPS = 10_000


class Player:
    """Plays rollouts of one environment, one at a time.

    Args:
        environment: a class, the name of an installed environment, or `FILE.py:CLASS`.
        model: a model's SPEC, such as `scripted` for the environment's own policy; answers one after the other; or a function
            from the conversation and the declared tools to an answer, such as `Person()`.
        agent: the agent's name.
        options: further fields of `RunConfig`, such as `max_turns`.

    Raises:
        GymqError: there is no such environment, agent or model.
    """

    def __init__(
        self,
        environment: type[Environment] | str,
        model: str | Answering | Iterable[Answer] = "scripted",
        *,
        agent: str = "tool",
        **options: Any,
    ) -> None:
        self._name = plugins.add_environment(environment)
        self._spec = type(plugins.environment(self._name)).spec()
        self._agent = plugins.agent(agent)
        spec = model if isinstance(model, str) else AnswersBackend.name
        self._config = RunConfig(_RUN, self._name, agent, spec, created=time.time(), **options)
        self._backends = {spec: plugins.backend(spec, {}) if isinstance(model, str) else AnswersBackend(model)}
        self._started: set[str] = set()

    async def play(self, row: JsonObject | Task) -> Rollout:
        """Play one rollout to its end, and return it as a consumer of a run would get it.

        Args:
            row: a row, as of a file of tasks, or a task.

        Raises:
            DataError: the row is no task.
        """
        if not isinstance(row, Task):
            row = parse_row(row, where="row", environment=self._name, known=[self._name])
        task = msgspec.structs.replace(row, environment=self._name)
        rollout = InlineRollout(str(RolloutId(_RUN, 0, 0)), task, self._config, self._spec, self._agent)
        with ThreadPoolExecutor(_THREADS, "gymq-inline") as threads:
            sessions = Sessions(threads, {})
            try:
                await self._play(rollout, threads, sessions)
            finally:
                await sessions.end()
                for spec in self._started:
                    await self._backends[spec].stop()
                self._started.clear()
        return Rollout(rollout.live.rid, rollout.record(), True, b"", 1)

    async def _play(self, rollout: InlineRollout, threads: ThreadPoolExecutor, sessions: Sessions) -> None:
        step = rollout.go()
        for _ in range(_MAX_STEPS):
            if step.final:
                return
            if sent := calls(step):
                serve = partial(self._serve, rollout, threads, sessions)
                step = rollout.go(*await asyncio.gather(*(serve(*call) for call in sent)))
            else:
                step = rollout.due(max(0.0, step.due - time.time()) + 0.001) or step
        rollout.abandon(Fault("internal", f"it had not ended after {_MAX_STEPS} steps"))

    async def _serve(
        self, rollout: InlineRollout, threads: ThreadPoolExecutor, sessions: Sessions, mailbox: str, call: Call
    ) -> Reply:
        started = time.time()
        fault, value = None, b""
        try:
            if mailbox.startswith("model:"):
                value = await self._answer(rollout, mailbox.removeprefix("model:"), call)
            else:
                value = await self._call(rollout, threads, sessions, call)
        except CallError as error:
            fault = error.fault
        return Reply(call.n, started, time.time(), _RUN, fault, value)

    async def _answer(self, rollout: InlineRollout, spec: str, call: Call) -> bytes:
        backend = self._backends.get(spec)
        if backend is None:  # a judge's
            backend = self._backends[spec] = plugins.backend(spec, {})
        await self._start(spec, backend)
        messages = call.messages if call.kind == "ask" else rollout.live.messages[: call.length]
        parameters = call.parameters if call.kind == "ask" else rollout.live.parameters
        body = decode_parameters(parameters or b"").request()
        task = rollout.live.task if backend.needs_task(call.environment) else None
        request = Request(call.place, call.environment, Conversation(messages), body, task, born=call.born)
        try:
            async with TimeLimit(call.timeout or None):
                return encode(await backend.generate(request))
        except TimeoutError:
            raise CallError("timeout", f"the model took longer than {call.timeout:g} s") from None
        except CallError:
            raise
        except Exception as error:
            raise CallError("model", one_line(f"{type(error).__name__}: {error}")) from error

    async def _start(self, spec: str, backend: Backend) -> None:
        if spec not in self._started:
            self._started.add(spec)
            await backend.start()

    async def _call(self, rollout: InlineRollout, threads: ThreadPoolExecutor, sessions: Sessions, call: Call) -> bytes:
        limit, _, _ = call_terms.limits(self._spec, call)
        wants = call_terms.wants(call)
        messages = Conversation(rollout.live.messages[: call.length])
        if call.has_state and call.state is None:
            call.state = rollout.live.environment_state
        task = rollout.live.task
        try:
            async with TimeLimit(limit):
                if "session" not in wants:
                    return await invoke(call, task, messages, threads=threads)
                late = partial(sessions.close, call.environment)
                make = partial(build, call, task, messages, threads=threads, late=late)
                async with sessions.use(call, 1, make) as session:
                    return await invoke(call, task, messages, threads=threads, session=session)
        except TimeoutError:
            raise CallError("timeout", f"{callable_name(call)} took longer than {limit:g} s") from None
        finally:
            if call.kind == "close":
                sessions.drop(call.rollout)
