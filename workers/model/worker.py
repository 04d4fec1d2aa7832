"""The model role: serves `generate` calls of one model through one backend."""

from __future__ import annotations

import asyncio
from typing import Any

from gymq import registry
from gymq.backend import Backend, Request
from gymq.call import Call, decode_plan, encode
from gymq.errors import CallError, UsageError
from gymq.message import Conversation
from gymq.server import CallServer
from gymq.settings import Settings

#: Calls that one model worker has in flight unless told otherwise.
CONCURRENCY = 512


class ModelWorker(CallServer):
    """Serves one model; see `Actor`. Options: `model` (SPEC), `concurrency`, and the backend's own."""

    role = "model"

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        spec = options.get("model")
        if not spec:
            raise UsageError("a model worker needs --model SPEC, for example --model openai:NAME")
        self._spec: str = spec
        name, _, model = spec.partition(":")
        super().__init__(settings, options)
        self.capacity = int(options.get("concurrency") or CONCURRENCY)
        self._backend: Backend = registry.load(registry.BACKENDS, name)(model, options)

    def mailboxes(self) -> list[str]:
        """The model's mailbox; all workers of the same SPEC share it."""
        return [f"model:{self._spec}"]

    async def prepare(self) -> None:
        """Start the backend."""
        await self._backend.start()

    async def close(self) -> None:
        """Stop the backend."""
        await self._backend.stop()

    async def serve(self, call: Call) -> bytes:
        """Ask the backend for the next message; see `CallServer`."""
        if call.kind != "generate":
            raise CallError("model", f"a model cannot answer a call of kind {call.kind!r}")
        kept = await self.conversation(call, plan=True)
        if kept.extra is None:
            kept.extra = decode_plan(kept.plan or b"").request()
        task = await self.task(call) if self._backend.needs_task(call.environment) else None
        request = Request(call.rollout, call.environment, Conversation(kept.turns), kept.extra, task)
        try:
            return encode(await self._backend.generate(request))
        except (CallError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise CallError("model", f"{type(error).__name__}: {error}") from None
