"""An endpoint, one address of a server with OpenAI's APIs: sends a request there once, and tells failures apart.

A call costs about 0.3 ms of CPU, most of it aiohttp's, so the URL, the headers and the time-out are made once, not per call.
"""

from __future__ import annotations

import io
import re
import time
import urllib.request
from collections.abc import AsyncIterator
from types import ModuleType

import aiohttp
import msgspec
from yarl import URL

from gymq.api.limiter import Limited
from gymq.errors import CallError, UsageError, one_line
from gymq.loop_clock import TimeLimit
from gymq.runtime.rate_limit import digest

from . import chat_api, generate_api
from .answer import Answer, InterruptedAnswer, MalformedAnswer, error_text
from .retry import Refusal, Transient, passes, retry_after

#: Seconds until a connection is established at most; a host that does not answer to SYN is down.
CONNECT_TIMEOUT = 10.0

#: Seconds that a probe may take: a person waits for it.
PROBE_TIMEOUT = 3.0

#: Seconds that an idle connection is kept: less than the 5 s after which uvicorn (vLLM, SGLang) closes it, under a request.
KEEP_ALIVE = 4.0

#: Bytes of an answer's body at most: far above any answer (token ids of 128k tokens with logprobs are 10 MB).
LARGEST_BODY = 64 * 1024 * 1024

#: Bytes of an error's body that are read: a fault repeats 300 characters of it.
LARGEST_ERROR = 64 * 1024

#: Bytes from which a request's body is written piece by piece; in one piece it would hold the loop.
LARGE_REQUEST = 1024 * 1024

#: Words for a prompt (and answer) that do not fit, upon which the conversation ends truncated: OpenAI's, vLLM's, SGLang's,
#: TGI's, llama.cpp's, Anthropic's, Google's, xAI's, Groq's, Mistral's, Bedrock's.
_OVERFLOW = re.compile(
    r"context[ _]length|context[ _]window|context[ _]size|maximum model length|max_model_len|prompt is too long|"
    r"input is too long|too many (?:input )?tokens|maximum prompt length|reduce the length of|token limit exceeded|"
    r"exceeds? the maximum number of tokens|max_new_tokens` must be|exceeded model token limit|longer than the model's context",
    re.I,
)

#: Words of a 429 for an account without money: no wait helps.
_NO_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|billing_hard_limit|credit balance is too low", re.I)

#: Statuses of answers to a key that is missing or wrong.
_NO_ACCESS = frozenset({401, 403})

#: The remedy where the server does not have the path or the model (404).
_UNKNOWN = "check --model and --base-url, which for most servers ends in /v1"

#: The end of the path of a base URL that has a version, as most servers' have.
_VERSIONED = re.compile(r"/v\d\w*$")

#: Statuses of answers to a prompt that does not fit.
_OVERFLOW_STATUSES = frozenset({400, 413, 422})


class Endpoint(Limited):
    """Base of endpoints: subclasses bring the HTTP client.

    Args:
        url: the address of requests.
        api: the module that encodes requests and reads answers, such as `chat_api`.
        model: the model's name there.
        secret: the key; it appears in no error.
        timeout: seconds that one try may take.
    """

    def __init__(self, url: URL, api: ModuleType, model: str, secret: str, timeout: float) -> None:
        self.url = url
        self.host = url.raw_authority
        self.timeout = timeout
        self._api = api
        self._model = model
        self._secret = secret

    def account(self) -> str:
        """Return the key of its rate limits: servers count by model and API key."""
        return digest(str(self.url.origin()), self.url.raw_path, self._model, self._secret)

    @property
    def key_variable(self) -> str:
        """The variable that holds the key."""
        return "OPENAI_API_KEY"

    def subject(self) -> str:
        """Return the model and the host."""
        return f"{self._model} at {self.host}"

    async def start(self) -> None:
        """Make the HTTP client; connections are opened as requests need them."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Close the connections."""
        raise NotImplementedError

    async def probe(self) -> str:
        """Return what keeps it from answering now, in one line; "": no defect is known.

        Raises:
            Transient: it does not answer.
        """
        return ""

    async def ask(self, body: bytes) -> Answer:
        """Send a request once.

        Raises:
            Transient: it failed in a way that may pass.
            CallError: it failed in a way that stays.
        """
        raise NotImplementedError

    def read_answer(self, content: bytes, api: ModuleType | None = None) -> Answer:
        """Read the body of an answer; raises as `ask` does.

        Args:
            content: the body.
            api: the module that reads it; None: the endpoint's own.
        """
        try:
            answer: Answer = (api or self._api).read_answer(content)
            return answer
        except InterruptedAnswer as error:
            raise self.refused(error.status, str(error), None) from None
        except (msgspec.ValidationError, MalformedAnswer, RecursionError) as error:
            raise Refusal(0, "model", self.line(f"nonsense from {self.host}: {error}")) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Transient(self.line(f"broken JSON from {self.host}: {error}")) from None

    def refused(self, status: int, text: str, after: float | None) -> Exception:
        """Return the exception for a status other than 200.

        Args:
            status: HTTP's.
            text: the server's words.
            after: the seconds of its Retry-After, or None.
        """
        if status in _OVERFLOW_STATUSES and _OVERFLOW.search(text):
            return Refusal(status, "context_overflow", self.line(f"{self.host}: {text}"))
        line = self.line(f"HTTP {status} from {self.host}: {text}")
        if status in _NO_ACCESS or status == 404:
            return Refusal(status, "model_access", f"{line}; {self._path_remedy() if status == 404 else self._key_remedy()}")
        if status == 429 and _NO_QUOTA.search(text):
            return Refusal(status, "model_access", line)
        if not passes(status):
            return Refusal(status, "model", line)
        return Transient(line, after, limited=status == 429, status=status)

    def _path_remedy(self) -> str:
        return _UNKNOWN

    def _key_remedy(self) -> str:
        return f"correct the key in {self.key_variable}" if self._secret else f"{self.key_variable} is not set: set it"

    def line(self, text: str) -> str:
        """Return the text of an error: one line, not too long, without the key."""
        return one_line(text.replace(self._secret, "***") if self._secret else text)

    def unreached(self) -> Transient:
        """Return the failure of a host that takes no connection."""
        return Transient(f"cannot reach {self.host}: no connection within {CONNECT_TIMEOUT:g} s")

    def too_large(self) -> CallError:
        """Return the failure of an answer that is larger than any."""
        return Refusal(0, "model", f"{self.host} sent more than {LARGEST_BODY >> 20} MiB")

    def late(self) -> Transient:
        """Return the failure of an answer that is not there in time."""
        return Transient(f"no answer from {self.host} within {self.timeout:g} s", kind="timeout")


class HttpEndpoint(Endpoint):
    """An endpoint with an aiohttp client.

    Args:
        base: the server's address with its `/v1`.
        api, model, secret, timeout: see `Endpoint`.
    """

    def __init__(self, base: str, api: ModuleType, model: str, secret: str, timeout: float) -> None:
        # vLLM's own routes stand beside its `/v1`.
        root = base.rstrip("/").removesuffix("/v1")
        super().__init__(join("openai", root if api is generate_api else base, api.PATH), api, model, secret, timeout)
        self._base = base.rstrip("/")
        self._models = join("openai", base, "/models")
        self._derender = join("openai", root, generate_api.DERENDER)
        self._session: aiohttp.ClientSession | None = None

    async def probe(self) -> str:
        """Ask for the list of models, to see whether the server answers and takes the key; see `Endpoint`."""
        await self.start()
        assert self._session is not None
        try:
            async with self._session.get(self._models, timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT)) as answer:
                if answer.status in _NO_ACCESS:
                    return f"{self.host} refuses the key (HTTP {answer.status}); {self._key_remedy()}"
                if answer.status == 404 and not _VERSIONED.search(self._base):
                    return f"{self.host} has no {self._models.path} (HTTP 404); {self._path_remedy()}"
                return ""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Transient(self.line(f"{self.host} does not answer ({error or type(error).__name__})")) from None
        finally:
            await self.stop()

    def _path_remedy(self) -> str:
        return _UNKNOWN if _VERSIONED.search(self._base) else f"try --base-url {self._base}/v1"

    async def start(self) -> None:
        """Make the session, once for all calls."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            skip_auto_headers=("User-Agent",),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            proxy=_proxy(self.url),
        )

    async def stop(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, body: bytes) -> Answer:
        """Send a request once; see `Endpoint`."""
        return self.read_answer(await self.post(self.url, body))

    async def read_message(self, body: bytes) -> Answer:
        """Have the server read a message from token ids, once; raises as `ask` does."""
        return self.read_answer(await self.post(self._derender, body), chat_api)

    async def post(self, url: URL, body: bytes) -> bytes:
        """Send a request once, and return the answer's body; raises as `ask` does.

        Args:
            url: its address on this server.
            body: its body.
        """
        session = self._session
        assert session is not None, "ask before start"
        data = body if len(body) < LARGE_REQUEST else io.BytesIO(body)
        try:
            async with TimeLimit(self.timeout), session.post(url, data=data, allow_redirects=False) as response:
                if response.status != 200:
                    text = error_text(await read_up_to(LARGEST_ERROR, response.content.iter_any()))
                    if not response.content.at_eof():
                        response.close()
                    raise self.refused(response.status, text, retry_after(response.headers, time.time()))
                content = await self._read(response)
                kind = response.headers.get("Content-Type", "application/json")
        except TimeoutError as error:
            raise (self.unreached() if isinstance(error, aiohttp.ConnectionTimeoutError) else self.late()) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise Refusal(0, "model_unavailable", self.line(f"cannot trust {self.host}: {error}")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(self.line(f"cannot reach {self.host}: {type(error).__name__}: {error}")) from None
        if "json" not in kind and not content.lstrip().startswith(b"{"):
            raise Transient(self.line(f"{self.host} answered with {kind}, not JSON"))
        return content

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read an answer's body, up to LARGEST_BODY."""
        length = response.content_length
        if length is not None and length <= LARGEST_BODY and "Content-Encoding" not in response.headers:
            return await response.read()
        content = await read_up_to(LARGEST_BODY, response.content.iter_any())
        if len(content) > LARGEST_BODY:
            response.close()
            raise self.too_large()
        return content


async def read_up_to(limit: int, pieces: AsyncIterator[bytes]) -> bytes:
    """Return a body; of one that is longer than a limit, its beginning, which is longer than the limit too.

    Args:
        limit: bytes.
        pieces: the body.
    """
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > limit:
            break
    return bytes(body)


def join(backend: str, base: str, path: str) -> URL:
    """Return an address below a base URL.

    Args:
        backend: the backend's name, for errors.
        base: the base URL, such as `http://host:8000/v1`.
        path: the path below it.

    Raises:
        UsageError: the base is no plain URL.
    """
    try:
        url = URL(base.rstrip("/"))
        (url.raw_host or "").encode("idna")  # as the resolver does; a name that it cannot encode is no name
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"model {backend}: base_url must look like http://host:8000/v1")
    if url.user or url.password or url.query_string or url.fragment:
        raise UsageError(
            f"model {backend}: base_url holds a user, a password or a query; the key belongs in "
            f"{'AZURE_OPENAI_API_KEY' if backend == 'azure' else 'OPENAI_API_KEY'}"
        )
    return URL(str(url).rstrip("/") + path)


def _proxy(url: URL) -> str | None:
    """Return the environment's proxy for a URL; a look-up costs more than a call."""
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)
