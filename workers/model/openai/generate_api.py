"""vLLM's `/inference/v1/generate`: token ids in, token ids out; `/v1/chat/completions/derender` reads a message from them
with the server's own parsers. A server has both with `--enable-scale-out`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from gymq.api.backend import Request
from gymq.errors import CallError
from gymq.wire.json_types import JsonObject
from gymq.wire.message import decode_message, encode_message

from ..sampling_fields import PROMPT_FIELDS, SAMPLING_FIELDS, SERVER_FIELDS
from .answer import (
    Answer,
    InterruptedAnswer,
    Logprobs,
    MalformedAnswer,
    TokenId,
    WireUsage,
    check_finish,
    error_text,
    read_usage,
)

PATH = "/inference/v1/generate"

#: The path that reads a message from token ids, on the same server.
DERENDER = "/v1/chat/completions/derender"

#: Fields of chat completions that are vLLM's sampling parameters under the same names.
_SAMPLING = SAMPLING_FIELDS | {"structured_outputs", "skip_special_tokens"}

#: Fields about rendering the prompt and reading the answer, and those of other servers.
_ELSEWHERE = PROMPT_FIELDS | SERVER_FIELDS | {"n"}

#: Fields of the request itself.
_REQUEST = frozenset({"cache_salt", "priority"})


class _VersionSpan(msgspec.Struct):
    version: str | int
    start: int


class _Choice(msgspec.Struct):
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Logprobs | None = None
    weight_versions: list[_VersionSpan] | None = None


class _Generated(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    model: str | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Generated)
_encoder = msgspec.json.Encoder()


def request_body(model: str, ids: list[int], request: Request) -> bytes:
    """Return a request's body.

    Args:
        model: the model's name on the server.
        ids: the prompt's token ids.
        request: the other fields, in the chat form.

    Raises:
        CallError: `model`: it holds a part that token ids cannot carry, or a field that this API lacks.
    """
    if any(isinstance(m.content, list) and any(p.get("type") != "text" for p in m.content) for m in request.messages):
        raise CallError("model", "api generate sends text only; use api chat for images and the like")
    fields = msgspec.json.decode(request.body)
    params: JsonObject = {"logprobs": 0}
    top: JsonObject = {}
    for name, value in fields.items():
        if name == "max_completion_tokens":
            params["max_tokens"] = value
        elif name == "response_format":
            params |= _structured(value)
        elif name in _SAMPLING:
            params[name] = value
        elif name in _REQUEST:
            top[name] = value
        elif name not in _ELSEWHERE:
            raise CallError("model", f"api generate has no sampling field {name[:60]!r}; remove it, or use api chat")
    return _encoder.encode({"model": model, "token_ids": ids, "sampling_params": params, **top})


def read_answer(data: bytes) -> Answer:
    """Read a server's answer, whose message is still to be read from its ids.

    Raises:
        msgspec.DecodeError: it is no JSON, or (`msgspec.ValidationError`) of other types.
        MalformedAnswer: it is no answer.
        InterruptedAnswer: the server says that it failed, or broke the answer off.
    """
    generated = _decoder.decode(data)
    if not generated.choices:
        if generated.error is not None:
            raise InterruptedAnswer(error_text(data))
        raise MalformedAnswer("no choices")
    choice = generated.choices[0]
    finish = check_finish(choice.finish_reason)
    if choice.token_ids is None:
        raise MalformedAnswer("no token_ids")
    listed = choice.logprobs.content if choice.logprobs is not None else None
    return Answer(
        b"",
        "length" if finish == "length" else "stop",
        read_usage(generated.usage),
        generated.model or "",
        None,
        choice.token_ids,
        [item.logprob for item in listed] if listed else None,
        _versions(choice.weight_versions or []),
        choice.stop_reason if isinstance(choice.stop_reason, str) else "",
    )


def derender_body(model: str, prompt: list[int], output: list[int], finish: str, request: Request) -> bytes:
    """Return the body of the request that reads a message from sampled ids.

    Args:
        model: the model's name on the server.
        prompt: the prompt's ids.
        output: the sampled ids, without the token that ended them; at least one.
        finish: the answer's finish reason.
        request: the request that was answered, in the chat form.
    """
    fields = {name: value for name, value in msgspec.json.decode(request.body).items() if name in _ELSEWHERE}
    fields = {name: value for name, value in fields.items() if "token" not in name and "logprobs" not in name}
    choice = {"index": 0, "token_ids": output, "finish_reason": finish}
    generated = {"request_id": "gymq", "choices": [choice], "prompt_token_ids": prompt}
    chat = {"model": model, "messages": [], **fields}
    return _encoder.encode({"model": model, "generate_response": generated, "prompt_token_ids": prompt, "chat_request": chat})


def cut(message: bytes, stopped: str) -> bytes:
    """Return a message without the stop string that ended it, which its ids hold.

    Args:
        message: the encoded message.
        stopped: the stop string; empty: no string ended it.
    """
    decoded = decode_message(message)
    if not stopped or not isinstance(decoded.content, str) or stopped not in decoded.content:
        return message
    decoded.content = decoded.content[: decoded.content.rindex(stopped)]
    return encode_message(decoded)


def _structured(form: JsonObject) -> JsonObject:
    if form.get("type") == "json_schema":
        return {"structured_outputs": {"json": form["json_schema"]["schema"]}}
    if form.get("type") == "json_object":
        return {"structured_outputs": {"json_object": True}}
    if form.get("type") == "text":
        return {}
    raise CallError("model", f"api generate has no response_format of type {str(form.get('type'))[:60]!r}; use api chat")


def _versions(spans: list[_VersionSpan]) -> list[tuple[int, int]]:
    """Return runs of policy versions; none where the server's names for them are no numbers, or its runs have gaps."""
    try:
        runs = [(span.start, int(span.version)) for span in spans]
    except ValueError:
        return []
    ordered = all(start < following for (start, _), (following, _) in pairwise(runs))
    return runs if runs and runs[0][0] == 0 and ordered and min(version for _, version in runs) >= 0 else []
