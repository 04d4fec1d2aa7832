"""The backend `openai`: any server that speaks OpenAI's chat completions or Responses (hosted ones, vLLM, SGLang, llama.cpp).

A call costs its process about 0.3 ms of CPU, most of it aiohttp's; so whatever a call does not need made anew is made
once: the URL, the headers, the time-out, the body's head.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
import random
import re
import struct
import time
import urllib.request
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from gymq.backend import Backend, Request
from gymq.call import Generated, Tokens
from gymq.errors import CallError, UsageError, one_line
from gymq.rate import digest

from . import chat_api, responses_api
from .chat_api import Answer, BrokenOff, Nonsense, error_text
from .pace import Pace, Sizes
from .prefixes import Prefixes
from .retry import RETRIES, Retries, Transient, passes, retry_after

DEFAULT_BASE_URL = "https://api.openai.com/v1"

#: Seconds that one try may take; a long answer of a busy server takes minutes.
DEFAULT_TIMEOUT = 600.0

#: Seconds in which a connection must stand; a host that does not answer to SYN is down.
CONNECT_TIMEOUT = 10.0

#: Seconds that a probe may take: a person waits for it.
PROBE_TIMEOUT = 3.0

#: Seconds that an idle connection is kept: less than the 5 s after which uvicorn (vLLM, SGLang) closes it under our request.
KEEP_ALIVE = 4.0

#: Bytes of an answer's body that we read: far above any answer (token ids of 128k tokens with logprobs are 10 MB).
LARGEST_BODY = 64 * 1024 * 1024

#: Bytes of an error's body that we read: a fault repeats 300 characters of it.
LARGEST_ERROR = 64 * 1024

#: Bytes from which a body is written piece by piece; in one piece it would hold the loop.
LARGE_REQUEST = 1024 * 1024

#: Rollouts of which the last call's token ids are remembered, 250 bytes each.
REMEMBERED = 16384

#: How servers say that prompt (and answer) do not fit, so that the conversation ends truncated: OpenAI, vLLM, SGLang, TGI,
#: llama.cpp, Anthropic, Google, xAI, Groq, Mistral, Bedrock.
_OVERFLOW = re.compile(
    r"context[ _]length|context[ _]window|context[ _]size|maximum model length|max_model_len|prompt is too long|"
    r"input is too long|too many (?:input )?tokens|maximum prompt length|reduce the length of|token limit exceeded|"
    r"exceeds? the maximum number of tokens|max_new_tokens` must be|exceeded model token limit|longer than the model's context",
    re.I,
)

#: How servers say with 429 that there is no money left: no wait helps.
_NO_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|billing_hard_limit|credit balance is too low", re.I)

#: Statuses that servers give to a prompt that does not fit.
_OVERFLOW_STATUSES = frozenset({400, 413, 422})

_APIS = {"chat": chat_api, "responses": responses_api}


class OpenAIBackend(Backend):
    """Answers from an OpenAI-compatible server; the key is OPENAI_API_KEY's, and stands in no error and no record.

    Args:
        model: the model's name on the server.
        options: `base_url` (else OPENAI_BASE_URL, else OpenAI's), `api` (`chat` or `responses`), `timeout` (seconds for one
            try), `retries` (further tries).

    Raises:
        UsageError: an option makes no sense, or OpenAI's own server is meant and there is no key.
    """

    name = "openai"

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        super().__init__(model, options)
        if not model:
            raise UsageError("model openai: say which model, as in openai:NAME")
        base = options.get("base_url") or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        api = options.get("api") or "chat"
        if api not in _APIS:
            raise UsageError(f"model openai: api is {api!r}; it is chat or responses")
        self._api = _APIS[api]
        self._url = _url(base, self._api.PATH)
        self._models = _url(base, "/models")
        self._host = self._url.raw_authority
        self._timeout = _number(options, "timeout", DEFAULT_TIMEOUT, smallest=0.001)
        self._retries = int(_number(options, "retries", RETRIES, smallest=0))
        self._key = (os.environ.get("OPENAI_API_KEY") or "").strip()
        if not self._key and self._url.host == "api.openai.com":
            raise UsageError("model openai: OPENAI_API_KEY is not set; set it, or name another server with base_url")
        if not self._key.isprintable() or not self._key.isascii():
            raise UsageError("model openai: OPENAI_API_KEY holds characters that no key has")
        self._head = b'{"model":' + msgspec.json.encode(model) + b","
        self._session: aiohttp.ClientSession | None = None
        self._prefixes = Prefixes(REMEMBERED)
        self._sizes = Sizes()

    def account(self) -> str:
        """Servers limit a model of a key."""
        return digest(str(self._url.origin()), self._url.raw_path, self.model, self._key)

    async def probe(self) -> str:
        """Ask for the list of models: whether anybody answers, and takes the key."""
        await self.start()
        assert self._session is not None
        try:
            async with self._session.get(self._models, timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT)) as answer:
                return f"{self._host} refuses the key (HTTP {answer.status})" if answer.status in (401, 403) else ""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"{self._host} does not answer ({error or type(error).__name__}); calls are tried again for about a minute"
        finally:
            await self.stop()

    async def start(self) -> None:
        """Make the session; connections are opened as calls need them."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            skip_auto_headers=("User-Agent",),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_TIMEOUT),
            proxy=_proxy(self._url),
        )

    async def stop(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def generate(self, request: Request) -> Generated:
        """Ask the server, again while its failures may pass.

        Raises:
            CallError: `model`, `model_unavailable`, `context_overflow` or `timeout`.
        """
        body = self._api.request_body(self._head, request)
        retries = Retries(self._retries, time.monotonic())
        pace = None if self.limiter is None else Pace(self.limiter, self._sizes, request, body)
        while True:
            if pace is not None:
                await pace.enter(self._host)
            try:
                answer = await self._ask(body)
                break
            except Transient as failure:
                gated = 0.0 if pace is None else pace.failed(failure)
                wait = retries.wait(failure, time.monotonic() - gated, random.random())
                if failure.limited:
                    request.waited += wait
            await asyncio.sleep(wait)
        if pace is not None:
            pace.answered(answer.usage)
        tokens = None
        if answer.output is not None or answer.logprobs is not None:
            tokens = self._tokens(request, answer)
        return Generated(answer.message, answer.finish, answer.usage, tokens, answer.model)

    async def _ask(self, body: bytes) -> Answer:
        """One try."""
        session = self._session
        assert session is not None, "generate before start"
        data = body if len(body) < LARGE_REQUEST else io.BytesIO(body)
        try:
            async with session.post(self._url, data=data, allow_redirects=False) as response:
                if response.status != 200:
                    text = error_text(await self._read_error(response))
                    raise self._refused(response.status, text, retry_after(response.headers, time.time()))
                content = await self._read(response)
                kind = response.headers.get("Content-Type", "application/json")
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise Transient(f"cannot reach {self._host}: no connection within {CONNECT_TIMEOUT:g} s") from None
            raise Transient(f"no answer from {self._host} within {self._timeout:g} s", kind="timeout") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise CallError("model_unavailable", self._line(f"cannot trust {self._host}: {error}")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(self._line(f"cannot reach {self._host}: {type(error).__name__}: {error}")) from None
        if "json" not in kind and not content.lstrip().startswith(b"{"):
            raise Transient(self._line(f"{self._host} answered with {kind}, not JSON"))
        try:
            return self._api.read_answer(content)
        except BrokenOff as error:
            raise self._refused(error.status, str(error), None) from None
        except (msgspec.ValidationError, Nonsense, RecursionError) as error:
            raise CallError("model", self._line(f"nonsense from {self._host}: {error}")) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Transient(self._line(f"broken JSON from {self._host}: {error}")) from None

    async def _read_error(self, response: aiohttp.ClientResponse) -> bytes:
        """Read the beginning of a body."""
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size >= LARGEST_ERROR:
                response.close()
                break
        return b"".join(pieces)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read a body, but not without end."""
        length = response.content_length
        if length is not None and length <= LARGEST_BODY and "Content-Encoding" not in response.headers:
            return await response.read()
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST_BODY:
                response.close()
                raise CallError("model", f"{self._host} sent more than {LARGEST_BODY >> 20} MiB")
        return b"".join(pieces)

    def _refused(self, status: int, text: str, after: float | None) -> Exception:
        """What to raise for a status other than 200."""
        if status in _OVERFLOW_STATUSES and _OVERFLOW.search(text):
            return CallError("context_overflow", self._line(f"{self._host}: {text}"))
        line = self._line(f"HTTP {status} from {self._host}: {text}")
        if not passes(status) or (status == 429 and _NO_QUOTA.search(text)):
            return CallError("model", line)
        return Transient(line, after, limited=status == 429)

    def _line(self, text: str) -> str:
        """Text for an error: one line, not too long, without the key."""
        return one_line(text.replace(self._key, "***") if self._key else text)

    def _tokens(self, request: Request, answer: Answer) -> Tokens:
        """Pack token ids and logprobs; of the prompt only what is new since the rollout's last call."""
        output, logprobs = answer.output or [], answer.logprobs or []
        if answer.output is not None and logprobs and len(output) != len(logprobs):
            raise CallError("model", f"nonsense from {self._host}: {len(output)} token ids but {len(logprobs)} logprobs")
        try:
            packed = struct.pack(f"<{len(output)}i", *output)
            prompt = struct.pack(f"<{len(answer.prompt or ())}i", *answer.prompt or ())
            probabilities = struct.pack(f"<{len(logprobs)}f", *logprobs)
        except (struct.error, OverflowError) as error:
            raise CallError("model", f"nonsense from {self._host}: token ids or logprobs out of range: {error}") from None
        start = self._prefixes.known(request, prompt) if prompt else 0
        if prompt and packed:
            self._prefixes.remember(request, answer.message, prompt + packed)
        return Tokens(start // 4, prompt[start:], packed, probabilities)


def _url(base: str, path: str) -> URL:
    """The address to post to, checked."""
    try:
        url = URL(base.rstrip("/"))
        (url.raw_host or "").encode("idna")  # what the resolver does; a name that it cannot encode is no name
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError("model openai: base_url must look like http://host:8000/v1")
    if url.user or url.password or url.query_string:
        raise UsageError("model openai: base_url holds a user, a password or a query; the key belongs in OPENAI_API_KEY")
    return URL(str(url).rstrip("/") + path)


def _proxy(url: URL) -> str | None:
    """The environment's proxy for a URL; looked up once, as a look-up costs more than a call."""
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _number(options: dict[str, Any], name: str, default: float, *, smallest: float) -> float:
    value = options.get(name)
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not smallest <= number < math.inf:
        raise UsageError(f"model openai: {name} is {value!r}; it is a number from {smallest:g} up")
    return number
