"""The model role: serves `generate` and `ask` calls of one model through one backend."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from gymq import registry
from gymq.actor import Actor
from gymq.backend import Backend, Request
from gymq.call import Call, decode_plan, encode
from gymq.errors import CallError, UsageError, one_line
from gymq.message import Conversation
from gymq.server import CallServer
from gymq.settings import Settings

from .shared import Shared

#: Calls that one model worker has in flight unless told otherwise.
CONCURRENCY = 512


class ModelWorker(CallServer):
    """Serves one model; see `Actor`. Options: `model` (SPEC), `concurrency`, and the backend's own."""

    role = "model"

    def __init__(self, settings: Settings, options: dict[str, Any], backend: Shared | None = None) -> None:
        self._spec: str = options.get("model") or ""
        self._backend = backend or Shared(_make(self._spec, options), settings, 1)
        self.private = self._backend.affine
        super().__init__(settings, options)
        self.capacity = int(options.get("concurrency") or CONCURRENCY)

    @classmethod
    def on_shards(cls, settings: list[Settings], options: dict[str, Any]) -> list[Actor]:
        """Make an actor for each shard, all with one backend; see `Actor`."""
        shared = Shared(_make(options.get("model") or "", options), settings[0], len(settings))
        return [cls(one, options, shared) for one in settings]

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
        if call.kind not in ("generate", "ask"):
            raise CallError("model", f"a model cannot answer a call of kind {call.kind!r}")
        if call.kind == "ask":
            # A verifier's question is a conversation of its own: it brings all its messages, and nothing of it is kept.
            name, turns, body = f"ask:{call.rollout}", call.turns, decode_plan(call.plan or b"").request()
            history = None
        else:
            kept = await self.conversation(call, plan=True)
            if kept.extra is None:
                kept.extra = decode_plan(kept.plan or b"").request()
            name, turns, body = call.rollout, kept.turns, kept.extra
            history = partial(self.history, call)
        task = await self.task(call) if self._backend.needs_task(call.environment) else None
        request = Request(name, call.environment, Conversation(turns), body, task, history=history, born=call.born)
        limit = asyncio.timeout(call.timeout or None)
        try:
            async with limit:
                return encode(await self._backend.generate(request))
        except asyncio.CancelledError:
            request.waited = 0.0  # nobody is answered
            raise
        except CallError:
            raise
        except Exception as error:
            if limit.expired():
                raise CallError("timeout", f"the model took longer than {call.timeout:g} s (--call-timeout)") from None
            raise CallError("model", one_line(f"{type(error).__name__}: {error}")) from None
        finally:
            if request.waited:
                self.waited[call.id] = request.waited


def _make(spec: str, options: dict[str, Any]) -> Backend:
    if not spec:
        raise UsageError("a model worker needs --model SPEC, for example --model openai:NAME")
    name, _, model = spec.partition(":")
    made: Backend = registry.load(registry.BACKENDS, name)(model, options)
    return made
