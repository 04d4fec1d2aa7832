"""The backend `openai`: servers that speak OpenAI's chat completions or Responses (hosted ones, vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import msgspec

from gymq.api.backend import Backend, Request
from gymq.api.limiter import Limited
from gymq.errors import CallError, UsageError
from gymq.observe.events import ModelRequested, emit
from gymq.wire.calls import Generated
from gymq.wire.json_types import JsonObject

from ..options import flag, number
from ..tokens.prefixes import Prefixes
from ..tokens.token_prompt import pack_ids, pack_logprobs
from . import chat_api, generate_api, responses_api
from .answer import Answer
from .endpoint import Endpoint, HttpEndpoint
from .endpoint_pool import EndpointPool
from .request_pacing import RequestPacing, SizeEstimate
from .retry import RETRIES, Refusal, RetrySchedule, Transient
from .token_client import TokenClient

DEFAULT_BASE_URL = "https://api.openai.com/v1"

#: Seconds that one try may take; a busy server needs minutes for a long answer.
DEFAULT_TIMEOUT = 600.0

#: Rollouts whose endpoint and digest of token ids are remembered, 450 bytes each.
MAX_CONVERSATIONS = 16384

#: Fields that ask vLLM for token ids and log probabilities, as they stand in a request.
_TOKEN_FIELDS = {b'"return_token_ids"': b'"return_token_ids":true,', b'"logprobs"': b'"logprobs":true,'}

_APIS = {"chat": chat_api, "responses": responses_api, "generate": generate_api}

#: One try of a request at an endpoint.
_Try = Callable[[Any, bytes], Awaitable[Answer]]


class OpenAIBackend(Backend):
    """Answers from OpenAI-compatible servers; their key, OPENAI_API_KEY, appears in no error and no record.

    Args:
        model: the model's name on the server.
        options: `base_url` (else OPENAI_BASE_URL, else OpenAI's; several with commas between are replicas), `api` (`chat`,
            `responses`, or `generate`: vLLM's own, in token ids), `tokenizer` (of `generate`), `token_ids` (whether to ask for
            them), `timeout` (seconds for one try), `retries` (further tries).

    Raises:
        UsageError: an option makes no sense, or OpenAI's own server is meant and there is no key.
    """

    name = "openai"
    secrets: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)

    #: The APIs that it can use.
    apis: ClassVar[tuple[str, ...]] = ("chat", "responses", "generate")

    def __init__(self, model: str, options: JsonObject) -> None:
        super().__init__(model, options)
        if not model:
            raise UsageError(f"model {self.name}: the model's name is missing; write --model {self.name}:NAME")
        api = options.get("api") or "chat"
        if api not in self.apis:
            raise UsageError(f"model {self.name}: api is {api!r}; choose {' or '.join(self.apis)}")
        self._api = _APIS[api]
        self._timeout = number(self.name, options, "timeout", DEFAULT_TIMEOUT, smallest=0.001)
        self._retries = int(number(self.name, options, "retries", RETRIES, smallest=0))
        self._token_ids = flag(self.name, options, "token_ids")
        if self._token_ids and api != "chat":
            raise UsageError(f"model {self.name}: token_ids needs api chat; the Responses API has no field for them")
        if options.get("tokenizer") and api != "generate":
            raise UsageError(f"model {self.name}: tokenizer needs api generate; with api {api} the server tokenizes")
        self._exact = TokenClient(model, options.get("tokenizer") or model) if api == "generate" else None
        self._head = b'{"model":' + msgspec.json.encode(model) + b","
        self._endpoints = self._connect()
        names = [str(endpoint.url) for endpoint in self._endpoints]
        if len(set(names)) < len(names):
            raise UsageError(f"model {self.name}: base_url names a server twice; name each once")
        self._pool = EndpointPool(names, MAX_CONVERSATIONS)
        self._prefixes = Prefixes(MAX_CONVERSATIONS)
        self._sizes = SizeEstimate()

    def _connect(self) -> Sequence[Endpoint]:
        """Return the endpoints, not yet started."""
        key = secret(self.name, "OPENAI_API_KEY")
        bases = self.options.get("base_url") or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        endpoints = [HttpEndpoint(base.strip(), self._api, self.model, key, self._timeout) for base in bases.split(",")]
        if not key and any(endpoint.url.host == "api.openai.com" for endpoint in endpoints):
            raise UsageError("model openai: OPENAI_API_KEY is not set; set it, or name another server with base_url")
        return endpoints

    def limited(self) -> list[Limited]:
        """Return the endpoints: each has limits of its own."""
        return list(self._endpoints)

    async def probe(self) -> str:
        """Return the defects of all endpoints; see `Backend`. One that answers is enough to go on with."""
        said: list[str] = []
        silent = 0
        for endpoint in self._endpoints:
            try:
                said.append(await endpoint.probe())
            except Transient as failure:
                said.append(failure.message)
                silent += 1
        line = "; ".join(filter(None, said))
        if silent == len(self._endpoints):
            raise CallError("model_unavailable", line)
        return line

    async def start(self) -> None:
        """Start the endpoints; connections are opened as calls need them."""
        if self._exact is not None:
            self._exact.start()
        for endpoint in self._endpoints:
            await endpoint.start()

    async def stop(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            await endpoint.stop()

    async def generate(self, request: Request) -> Generated:
        """Ask an endpoint, and again, or another one, while failures may pass.

        Raises:
            CallError: `model`, `model_access`, `model_unavailable`, `context_overflow` or `timeout`.
        """
        if self._exact is not None:
            return await self._generate(request, self._exact)
        body = self._api.request_body(self._head_for(request), request)
        answer = await self._answer(request, body, _ask)
        tokens = None
        if answer.output is not None or answer.logprobs is not None:
            prompt, output, logprobs = (
                pack_ids(answer.prompt or ()),
                pack_ids(answer.output or ()),
                pack_logprobs(answer.logprobs or ()),
            )
            tokens = await self._prefixes.tokens(request, answer.message, prompt, output, logprobs)
        return Generated(answer.message, answer.finish, answer.usage, tokens, answer.model)

    async def _generate(self, request: Request, exact: TokenClient) -> Generated:
        """Ask in token ids, then have the server read the message from those of the answer."""
        prompt, body = await exact.prompt(request)
        answer = await self._answer(request, body, _ask)
        question = exact.question(request, prompt, answer)
        read = await self._answer(request, question, HttpEndpoint.read_message) if question else None
        return exact.answered(request, prompt, answer, read)

    async def _answer(self, request: Request, body: bytes, attempt: _Try) -> Answer:
        """Return an endpoint's answer, after as many tries as the retry schedule allows."""
        pool = self._pool
        pace = RequestPacing(self._sizes, request, body)
        retries = RetrySchedule(self._retries, time.monotonic())
        tried: set[int] = set()
        while True:
            began = time.monotonic()
            index = pool.choose(request.rollout, began, tried)
            endpoint = self._endpoints[index]
            pool.began(index)
            try:
                await pace.enter(endpoint.limiter, endpoint.host)
                sent = time.monotonic()
                answer = await attempt(endpoint, body)
                emit(ModelRequested(endpoint.host, 200, time.monotonic() - sent))
                pool.answered(index)
                pace.answered(answer.usage)
                return answer
            except Refusal as refusal:
                emit(ModelRequested(endpoint.host, refusal.status, time.monotonic() - sent))
                raise
            except Transient as failure:
                now = time.monotonic()
                emit(ModelRequested(endpoint.host, failure.status, now - sent, failure.retry_after or 0.0))
                gated = pace.failed(failure)
                wait = retries.wait(failure, now - gated, random.random())
                if failure.limited:
                    request.waited += wait
                else:
                    pool.failed(index, began, now)
                    tried.add(index)
                    if any(i not in tried and pool.usable(i, now) for i in range(len(self._endpoints))):
                        wait = 0.0  # another endpoint has not failed
                    elif len(tried) == len(self._endpoints):
                        tried.clear()
            finally:
                pool.ended(index)
            await asyncio.sleep(wait)

    def _head_for(self, request: Request) -> bytes:
        """Return the beginning of the request's body; the row's own fields about token ids prevail."""
        if not self._token_ids:
            return self._head
        return self._head + b"".join(text for field, text in _TOKEN_FIELDS.items() if field not in request.body)


def _ask(endpoint: Endpoint, body: bytes) -> Awaitable[Answer]:
    return endpoint.ask(body)


def secret(backend: str, variable: str) -> str:
    """Return a key from the environment; empty: it is not set.

    Args:
        backend: the backend's name, for errors.
        variable: the key's variable.

    Raises:
        UsageError: its value has characters that no key has.
    """
    key = (os.environ.get(variable) or "").strip()
    if not key.isprintable() or not key.isascii():
        raise UsageError(f"model {backend}: {variable} holds characters that no key has; copy the key again")
    return key
