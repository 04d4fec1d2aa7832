"""The backends `sdk` and `azure`: hosted providers, asked through the library `openai`.

Its client knows Azure's addresses, versions and keys, and reads streamed answers. APIs, retries, limits and faults are those of
the backend `openai`. A call costs about ten times the CPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import msgspec
import openai
from yarl import URL

from gymq.errors import UsageError
from gymq.loop_clock import TimeLimit
from gymq.wire.json_types import JsonObject

from ..options import flag, number
from . import responses_api
from .answer import Answer, InterruptedAnswer, MalformedAnswer, error_text, server_error
from .backend import DEFAULT_BASE_URL, OpenAIBackend, secret
from .bounded_client import TooLarge, Unreadable, bounded_client, http
from .endpoint import LARGEST_BODY, Endpoint, join
from .retry import Refusal, Transient, retry_after
from .sse import ChatStream, ResponsesStream

#: Seconds between two pieces of a streamed answer; servers send something now and then while a model thinks.
CHUNK_TIMEOUT = 60.0

_encoder = msgspec.json.Encoder()


class SdkEndpoint(Endpoint):
    """An endpoint with a client of the library.

    Args:
        url, api, model, secret, timeout: see `Endpoint`.
        arguments: the client's arguments; an `api_version` makes it Azure's.
        stream: whether answers are streamed.
        chunk_timeout: seconds that a streamed answer may pause.
    """

    def __init__(
        self,
        url: URL,
        api: ModuleType,
        model: str,
        secret: str,
        timeout: float,
        *,
        arguments: JsonObject,
        stream: bool,
        chunk_timeout: float,
    ) -> None:
        super().__init__(url, api, model, secret, timeout)
        self._arguments = arguments
        self._stream = stream
        self._chunk_timeout = chunk_timeout
        self._client: openai.AsyncOpenAI | None = None

    @property
    def key_variable(self) -> str:
        """The variable that holds the key; see `Endpoint`."""
        if "azure_ad_token" in self._arguments:
            return "AZURE_OPENAI_AD_TOKEN"
        return "AZURE_OPENAI_API_KEY" if "api_version" in self._arguments else super().key_variable

    async def start(self) -> None:
        """Make the client."""
        kind = openai.AsyncAzureOpenAI if "api_version" in self._arguments else openai.AsyncOpenAI
        self._client = kind(**self._arguments, http_client=bounded_client(self.timeout), max_retries=0)

    async def stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def ask(self, body: bytes) -> Answer:
        """Send a request once; see `Endpoint`."""
        assert self._client is not None, "ask before start"
        fields = msgspec.json.decode(body)
        model = fields.pop("model")
        create: Any
        if self._api is responses_api:
            create, named = self._client.responses, {"input": fields.pop("input")}
        else:
            create, named = self._client.chat.completions, {"messages": fields.pop("messages")}
            if self._stream:
                fields["stream_options"] = {"include_usage": True}
        named |= {"model": model, "extra_body": fields}
        try:
            async with TimeLimit(self.timeout):
                content = await (self._streamed(create, named) if self._stream else self._read(create, named))
        except TimeoutError:
            raise self.late() from None
        except openai.APITimeoutError as error:
            raise (self.unreached() if isinstance(error.__cause__, http.ConnectTimeout) else self.late()) from None
        except openai.APIConnectionError as error:
            raise self._unreachable(error.__cause__ or error) from None
        except openai.APIStatusError as error:
            after = retry_after(error.response.headers, time.time())
            raise self.refused(error.status_code, error_text(error.response.content), after) from None
        except openai.APIError as error:  # inside of a stream
            interrupted = server_error(error.body) if error.body else InterruptedAnswer(str(error))
            raise self.refused(interrupted.status, str(interrupted), None) from None
        except http.TransportError as error:
            raise self._unreachable(error) from None
        except TooLarge as error:
            raise Refusal(0, "model", f"{self.host} sent {error}") from None
        except Unreadable as error:
            raise self._unreachable(error) from None
        except (MalformedAnswer, openai.OpenAIError) as error:
            raise Refusal(0, "model", self.line(f"nonsense from {self.host}: {error}")) from None
        except ValueError as error:  # from the library's decoder
            raise Transient(self.line(f"broken JSON from {self.host}: {error}")) from None
        return self.read_answer(content)

    async def _read(self, create: Any, named: JsonObject) -> bytes:
        """Return the body of an answer in one piece."""
        async with create.with_streaming_response.create(**named) as response:
            content: bytes = await response.read()
            return content

    async def _streamed(self, create: Any, named: JsonObject) -> bytes:
        """Return the body that a streamed answer would have had in one piece."""
        pieces = ResponsesStream() if self._api is responses_api else ChatStream(LARGEST_BODY)
        stream = await create.create(stream=True, **named)
        try:
            parts = aiter(stream)
            limit = None  # until the first piece the model may think as long as the whole may take
            while True:
                try:
                    async with TimeLimit(limit) as pause:
                        part = await anext(parts)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    if not pause.expired():
                        raise
                    pause_text = f"no further piece of the answer from {self.host} within {self._chunk_timeout:g} s"
                    raise Transient(pause_text, kind="timeout") from None
                limit = self._chunk_timeout
                # The library makes an object of any JSON but a list, and warns of fields that do not fit.
                pieces.add(part.to_dict(mode="json", warnings=False) if isinstance(part, openai.BaseModel) else part)
        finally:
            await stream.close()
        if not pieces.ended:
            raise Transient(f"{self.host} cut its answer off")
        return _encoder.encode(pieces.whole())

    def _unreachable(self, error: BaseException) -> Exception:
        if isinstance(error, Unreadable):
            return Transient(f"{self.host}: {error}")
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Refusal(0, "model_unavailable", self.line(f"cannot trust {self.host}: {error}"))
        return Transient(self.line(f"cannot reach {self.host}: {type(error).__name__}: {error}"))


class SdkBackend(OpenAIBackend):
    """Answers from a hosted provider that speaks OpenAI's forms; see `OpenAIBackend`.

    Args:
        model: the model's name there.
        options: those of `openai`, `stream` (whether answers are streamed), `chunk_timeout` (seconds between two pieces).

    Raises:
        UsageError: an option makes no sense, or there is no key.
    """

    name = "sdk"
    apis = ("chat", "responses")

    #: The variables of the key and of the address, and the address without one.
    key: ClassVar[str] = "OPENAI_API_KEY"
    address: ClassVar[str] = "OPENAI_BASE_URL"
    default: ClassVar[str] = DEFAULT_BASE_URL

    def _connect(self) -> Sequence[Endpoint]:
        options = self.options
        bases = options.get("base_url") or os.environ.get(self.address) or self.default
        if not bases:
            raise UsageError(f"model {self.name}: the address is missing; set base_url or {self.address}")
        stream = flag(self.name, options, "stream")
        chunk_timeout = number(self.name, options, "chunk_timeout", CHUNK_TIMEOUT, smallest=0.001)
        if options.get("chunk_timeout") is not None and not stream:
            raise UsageError(f"model {self.name}: chunk_timeout needs streamed answers; set stream=true too")
        endpoints: list[Endpoint] = []
        for base in (base.strip() for base in bases.split(",")):
            key, arguments = self._client(base)
            url = join(self.name, base, self._path())
            endpoints.append(
                SdkEndpoint(
                    url,
                    self._api,
                    self.model,
                    key,
                    self._timeout,
                    arguments=arguments,
                    stream=stream,
                    chunk_timeout=chunk_timeout,
                )
            )
        return endpoints

    def _client(self, base: str) -> tuple[str, JsonObject]:
        """Return the key, and the arguments of the library's client."""
        key = secret(self.name, self.key)
        if not key:
            raise UsageError(f"model {self.name}: {self.key} is not set; set it to the provider's key")
        return key, {"base_url": base, "api_key": key}

    def _path(self) -> str:
        """Return the path below the address, which tells endpoints apart."""
        return str(self._api.PATH)


class AzureBackend(SdkBackend):
    """Answers from a deployment of Azure OpenAI; see `SdkBackend`.

    Args:
        model: the deployment's name.
        options: those of `sdk`; `base_url` (else AZURE_OPENAI_ENDPOINT) has no path, `api_version` (else OPENAI_API_VERSION).

    Raises:
        UsageError: an option makes no sense or is missing, or there is no key.
    """

    name = "azure"
    secrets = ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN")
    key = "AZURE_OPENAI_API_KEY"
    address = "AZURE_OPENAI_ENDPOINT"
    default = ""

    def _client(self, base: str) -> tuple[str, JsonObject]:
        version = self.options.get("api_version") or os.environ.get("OPENAI_API_VERSION")
        if not version:
            raise UsageError("model azure: the API version is missing; set api_version or OPENAI_API_VERSION")
        key, token = secret(self.name, self.key), secret(self.name, "AZURE_OPENAI_AD_TOKEN")
        if bool(key) == bool(token):
            both = "both are" if key else "neither is"
            raise UsageError(f"model azure: set either AZURE_OPENAI_API_KEY or AZURE_OPENAI_AD_TOKEN; {both} set")
        credential = {"api_key": key} if key else {"azure_ad_token": token}
        return key or token, {"azure_endpoint": base, "api_version": str(version), **credential}

    def _path(self) -> str:
        return "/openai/responses" if self._api is responses_api else f"/openai/deployments/{self.model}{self._api.PATH}"
