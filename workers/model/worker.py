"""The model role: answers `generate` and `ask` calls of one model through one backend."""

from __future__ import annotations

import asyncio
from functools import partial

from gymq import plugins
from gymq.aio import cancel_and_wait
from gymq.api.backend import Backend, Request
from gymq.errors import CallError, GymqError, UsageError, one_line
from gymq.loop_clock import TimeLimit
from gymq.observe.events import CallFinished, wanted
from gymq.observe.metrics import WorkerGauges
from gymq.runtime.actor import Actor
from gymq.runtime.call_worker import CallWorker
from gymq.runtime.mailbox import Mail
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings
from gymq.wire.calls import Call, Generated, decode_parameters, encode
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Conversation

from .shared_backend import SharedBackend
from .weight_updater import WeightsChanged

#: Calls in flight of one model worker, unless `--concurrency` says otherwise.
DEFAULT_CONCURRENCY = 512

#: Seconds between two looks at the backend's capacity and health.
POLL_INTERVAL = 0.02


class ModelWorker(CallWorker):
    """A worker of one model; see `Actor`. Options: `model` (SPEC), `concurrency`, and the backend's own."""

    role = "model"

    def __init__(
        self, settings: Settings, options: RoleOptions, *, suspects_only: bool = False, backend: SharedBackend | None = None
    ) -> None:
        self._spec: str = options.get("model") or ""
        self._backend = backend or SharedBackend(_make(self._spec, options), settings, self._spec, 1)
        if suspects_only and not self._backend.quarantinable:
            # It fills a device and cannot stand twice: its suspects go back to their rollouts.
            self._backend = SharedBackend(_Refusing(self._spec, {}), settings, self._spec, 1)
        self.private = self._backend.affine
        capacity = int(options.get("concurrency") or DEFAULT_CONCURRENCY)
        super().__init__(settings, options, capacity=capacity, suspects_only=suspects_only)
        self._published: JsonObject = {}
        self._entered = False
        self._watch: list[asyncio.Task[None]] = []

    @classmethod
    def on_shards(cls, settings: list[Settings], options: RoleOptions) -> list[Actor]:
        """Make an actor for each shard, all with one backend; see `Actor`.

        Args:
            settings: where Redis is.
            options: the command line's options.
        """
        spec = options.get("model") or ""
        shared = SharedBackend(_make(spec, options), settings[0], spec, len(settings))
        return [cls(shard_settings, options, backend=shared) for shard_settings in settings]

    def mailboxes(self) -> list[str]:
        """Return the model's mailbox, which all workers of its SPEC share."""
        return [f"model:{self._spec}"]

    def most_quarantines(self) -> int:
        """Return one for a backend that cannot stand twice: its quarantine only refuses; see `Actor`."""
        return super().most_quarantines() if self._backend.quarantinable else 1

    async def prepare(self) -> None:
        """Start the backend with the wanted weights."""
        await self._backend.start(self)
        await self._publish_status()
        if not self.suspects_only and self._backend.changes:
            self._watch = [asyncio.create_task(self._follow())]

    async def close(self) -> None:
        """Stop the backend."""
        await cancel_and_wait(self._watch)
        await self._backend.stop()

    async def handle(self, mail: list[Mail]) -> None:
        """Start each call; see `CallWorker`."""
        replica = self._backend.replica
        if replica is not None and not self._entered:
            # Weights may have been published after it looked and before it was in the registry.
            self._entered = True
            replica.doubt()
        await super().handle(mail)

    async def duties(self) -> None:
        """Look which weights are wanted, and publish which it has."""
        await super().duties()
        replica = self._backend.replica
        if replica is not None:
            replica.look()
            if self.settings.shard:
                await replica.mirror(self.life.connection)
        await self._publish_status()

    async def forget(self) -> None:
        """Drop all copies of what Redis holds; other weights may be wanted since."""
        self._entered = False
        await super().forget()

    def stats(self) -> JsonObject:
        """Return the numbers for `celery inspect stats`; the version is text, as sums of versions mean nothing."""
        status = self._backend.status()
        load = status.pop("load", {})
        return super().stats() | load | {key: str(value) for key, value in status.items() if value is not None}

    def gauges(self) -> WorkerGauges:
        """Return what it has in hand, and its backend's load and weights."""
        status = self._backend.status()
        gauges = super().gauges()
        gauges.load, gauges.policy_version = status.get("load", {}), status.get("version")
        return gauges

    async def _publish_status(self) -> None:
        status = self._backend.status()
        if status != self._published:
            await self.life.tell(**status)
            self._published = status

    async def _follow(self) -> None:
        """Take as many calls as the backend can work on; if it breaks, answer the calls in hand, and end."""
        limit = self.intake.capacity
        while self.failure is None:
            if broken := self._backend.health():
                # Its calls end with faults that may pass, so that their rollouts send them again, to others.
                self.leave(GymqError(broken), at_once=False)
            room = self._backend.capacity()
            self.intake.set_capacity(limit if room is None else min(limit, room))
            await asyncio.sleep(POLL_INTERVAL)

    async def serve(self, call: Call) -> bytes:
        """Return the backend's next message; see `CallWorker`."""
        if call.kind not in ("generate", "ask"):
            raise CallError("model", f"a model cannot answer a call of kind {call.kind!r}")
        if call.kind == "ask":
            # A verifier's question is a conversation of its own: it brings all its messages, and no worker keeps any.
            name, messages, body = f"ask:{call.place}", call.messages, decode_parameters(call.parameters or b"").request()
            history = None
        else:
            kept = await self.conversation(call, parameters=True)
            if kept.extra is None:
                kept.extra = decode_parameters(kept.parameters or b"").request()
            name, messages, body = call.place, kept.messages, kept.extra
            history = partial(self.history, call)
        task = await self.task(call) if self._backend.needs_task(call.environment) else None
        request = Request(
            name, call.environment, Conversation(messages), body, task, history=history, born=call.born, step=call.step
        )
        try:
            while True:
                await self._backend.enter(request)
                try:
                    answer = await self._ask(request, call.timeout)
                    if wanted(CallFinished):
                        self.usages[call.id] = answer.usage
                    return encode(answer)
                except WeightsChanged:
                    continue
        except asyncio.CancelledError:
            request.waited = 0.0  # the call gets no answer to carry it
            raise
        finally:
            if request.waited:
                self.waited[call.id] = request.waited

    async def _ask(self, request: Request, timeout: float) -> Generated:
        limit = TimeLimit(timeout or None)
        try:
            async with limit:
                return await self._backend.generate(request, limit)
        except (CallError, WeightsChanged):
            raise
        except Exception as error:
            if limit.expired():
                raise CallError("timeout", f"the model took longer than {timeout:g} s (--call-timeout)") from None
            raise CallError("model", one_line(f"{type(error).__name__}: {error}")) from None


class _Refusing(Backend):
    """A backend that refuses the suspects of one that cannot stand twice: their rollouts retry, as after outages."""

    name = "refusing"

    async def generate(self, request: Request) -> Generated:
        """Refuse the call."""
        raise CallError("model_unavailable", "the model's worker died twice with this call in hand")


def _make(spec: str, options: JsonObject) -> Backend:
    if not spec:
        raise UsageError("a model worker needs --model SPEC, for example --model openai:NAME")
    return plugins.backend(spec, options)
