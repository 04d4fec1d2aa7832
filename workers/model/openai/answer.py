"""A server's answer in one struct, whichever API it came by, with the parts that the APIs' JSON has in common."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from gymq.wire.calls import Usage
from gymq.wire.json_types import JsonObject

#: A token id; records hold 32 bits of it.
TokenId = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]

#: A log probability; records hold it in single precision.
LogProb = Annotated[float, msgspec.Meta(ge=-3.4e38, le=3.4e38)]

#: Finish reasons of an answer that the server itself broke off (vLLM and SGLang as weights change, OpenRouter).
_BROKEN_OFF = frozenset({"abort", "error"})

#: Number of tokens from which a server's usage is no count.
_MAX_COUNT = 1 << 40

_encoder = msgspec.json.Encoder()


class MalformedAnswer(Exception):
    """An answer that makes no sense; the text is one line."""


class InterruptedAnswer(Exception):
    """An answer that the server broke off, or an error that it sent with status 200.

    Args:
        message: one line.
        status: the HTTP status that the server should have sent; it decides whether the request is sent again.
    """

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class Answer(msgspec.Struct):
    """A server's answer.

    Args:
        message: the assistant's message, encoded.
        finish: `stop`, `tool_calls`, `length` or `content_filter`.
        usage: its tokens.
        model: the server's name of the model.
        prompt: the prompt's token ids, when given.
        output: the sampled token ids, when given.
        logprobs: one per sampled token, when given.
        versions: the policy versions that sampled it, as in `gymq.wire.calls.Tokens`.
        stopped: the stop string that ended it, when given.

    Raises:
        MalformedAnswer: it has not as many log probabilities as token ids.
    """

    message: bytes
    finish: str
    usage: Usage
    model: str = ""
    prompt: list[int] | None = None
    output: list[int] | None = None
    logprobs: list[float] | None = None
    versions: list[tuple[int, int]] = []
    stopped: str = ""

    def __post_init__(self) -> None:
        if self.output is not None and self.logprobs and len(self.output) != len(self.logprobs):
            raise MalformedAnswer(f"{len(self.output)} token ids but {len(self.logprobs)} logprobs")


class TokenLogprob(msgspec.Struct):
    """A sampled token and its log probability."""

    logprob: LogProb
    token: str = ""


class Logprobs(msgspec.Struct):
    """The log probabilities of a choice's tokens."""

    content: list[TokenLogprob] | None = None


class SampledIds(msgspec.Struct):
    """Base of what NeMo Gym's model servers hang the token ids on: the message, or the last output item."""

    prompt_token_ids: list[TokenId] | None = None
    generation_token_ids: list[TokenId] | None = None
    generation_log_probs: list[LogProb] | None = None


class _TokenDetails(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """A server's count of tokens; chat completions (the first four) and Responses have different names for the same numbers."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _TokenDetails | None = None
    completion_tokens_details: _TokenDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _TokenDetails | None = None
    output_tokens_details: _TokenDetails | None = None


def check_finish(reason: str | None) -> str:
    """Return a choice's finish reason; `stop` where the server gives none.

    Raises:
        InterruptedAnswer: the server broke the answer off, so the model has not ended it.
    """
    if reason in _BROKEN_OFF:
        raise InterruptedAnswer(f"the server broke its answer off: finish_reason {reason!r}")
    return reason or "stop"


def read_usage(usage: WireUsage | None) -> Usage:
    """Return the tokens that a server has counted; 0 where it counts none.

    Raises:
        MalformedAnswer: a number is negative, or larger than any count.
    """
    if usage is None:
        return Usage()
    prompt = usage.prompt_tokens_details or usage.input_tokens_details
    completion = usage.completion_tokens_details or usage.output_tokens_details
    counts = (
        usage.prompt_tokens or usage.input_tokens or 0,
        usage.completion_tokens or usage.output_tokens or 0,
        (prompt is not None and prompt.cached_tokens) or 0,
        (completion is not None and completion.reasoning_tokens) or 0,
    )
    for count in counts:
        if not 0 <= count < _MAX_COUNT:
            raise MalformedAnswer(f"usage of {str(count)[:20]} tokens")
    return Usage(*counts)


def named_ids(tokens: list[TokenLogprob]) -> list[int] | None:
    """Return the token ids that vLLM writes as `token_id:17` (`return_tokens_as_token_ids`); None where tokens are text.

    Raises:
        MalformedAnswer: an id has more than 32 bits.
    """
    if not tokens or not tokens[0].token.startswith("token_id:"):
        return None
    try:
        return msgspec.convert([int(token.token[9:]) for token in tokens], list[TokenId])
    except msgspec.ValidationError as error:
        raise MalformedAnswer(str(error)) from None
    except ValueError:
        return None


def encode_arguments(arguments: str | JsonObject) -> str:
    """Return a tool call's arguments as text: some servers send the JSON object itself."""
    return arguments if isinstance(arguments, str) else _encoder.encode(arguments).decode()


def server_error(error: Any) -> InterruptedAnswer:
    """Return the exception for an error in an answer of status 200, as OpenRouter and the Responses API send it."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    else:
        status = {"server_error": 500, "rate_limit_exceeded": 429, None: 500}.get(code if isinstance(code, str) else None, 400)
    return InterruptedAnswer(error_text(_encoder.encode({"error": error})), status)


def error_text(data: bytes) -> str:
    """Return the server's words in an error's body, as one line.

    Args:
        data: the body, in OpenAI's, vLLM's or FastAPI's form; any other text is taken as it is.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return " ".join(data[:2000].decode("utf-8", "replace").split())
    error = value
    if isinstance(value, dict):
        error = next((value[key] for key in ("error", "detail", "message") if value.get(key)), value)
    if isinstance(error, list):  # FastAPI's items say where and what, and repeat the input, which may be long
        words = [str(item.get("msg", "")) for item in error if isinstance(item, dict)]
    elif isinstance(error, dict):
        words = [str(error[key]) for key in ("message", "code", "type") if error.get(key)]
        # The code and the type add to the message only where they are words.
        words = [word for word in words if not word.isdigit()]
    else:
        words = [str(error)]
    return " ".join("; ".join(words).split())
