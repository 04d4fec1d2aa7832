"""Encoding of environments' results, messages, questions, numbers and states, for replies and the store.

A value that cannot be encoded, or is too large, is a fault of the environment, told in one line.
"""

from __future__ import annotations

import math
from numbers import Real

import msgspec

from gymq.api.environment import Ask
from gymq.errors import CallError
from gymq.wire.calls import Asked, Call
from gymq.wire.message import Message, encode_message

#: Bytes of a call's value: a dozen photographs, or far more text than a model reads. Redis, the agent and every later
#: request of the rollout must carry it.
MAX_RESULT_BYTES = 16 * 1024**2

#: The types of content parts; a tool's list of such objects goes to the model unchanged.
PART_TYPES = frozenset({"text", "image_url", "input_audio", "file"})


def callable_name(call: Call) -> str:
    """Return the name of a call's function for a person, `environment.tool`."""
    return f"{call.environment}.{call.name or call.kind}"


def content(call: Call, result: object) -> bytes:
    """Encode a tool's result as the content of a message: text, or content parts.

    Args:
        call: the tool's call.
        result: the tool's return value.

    Raises:
        CallError: `environment` or `result_too_large`.
    """
    data = json(call, "its result", result)
    if isinstance(result, str) or (isinstance(result, list) and result and all(map(_is_part, result))):
        return data
    return msgspec.json.encode(data.decode())


def encode_messages(call: Call, messages: list[Message]) -> list[bytes]:
    """Encode the messages that a hook returned.

    Args:
        call: the hook's call.
        messages: its messages.

    Raises:
        CallError: an element is no `Message`.
    """
    wrong = next((message for message in messages if not isinstance(message, Message)), None)
    if wrong is not None:
        raise _wrong(call, f"gave a message of type {type(wrong).__name__}; make it a gymq Message")
    return [encode_message(message) for message in messages]


def asked(call: Call, ask: Ask) -> Asked:
    """Encode a question to a model.

    Args:
        call: the call of the hook that asks.
        ask: the question.

    Raises:
        CallError: it has no messages, or a part of it cannot be encoded.
    """
    if not ask.messages:
        raise _wrong(call, "asks a model, but gives it no messages")
    if not isinstance(ask.sampling, dict):
        raise _wrong(call, f"asks a model with sampling of type {type(ask.sampling).__name__}; make it a dict")
    encoded = encode_messages(call, ask.messages)
    try:
        note = msgspec.msgpack.encode(ask.note)
        return Asked(encoded, note, msgspec.json.encode(ask.sampling), ask.model or "")
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong(call, f"asks a model with a note or sampling that cannot be sent: {error}") from error


def json(call: Call, noun: str, value: object) -> bytes:
    """Encode a value as JSON; pydantic models and numpy's arrays and scalars have a form, too.

    Args:
        call: the call that returned it.
        noun: the value's name in an error, as "its result".
        value: the value.

    Raises:
        CallError: `environment`: it has no JSON form; `result_too_large`.
    """
    if isinstance(value, str) and len(value) > MAX_RESULT_BYTES:  # not worth encoding
        raise too_large(call, len(value))
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise CallError("environment", f"{call.name or call.kind}: {noun} has no JSON form: {error}") from error


def state(value: object) -> bytes:
    """Encode an environment's state.

    Raises:
        CallError: a part of it has no msgpack form.
    """
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise CallError(
            "environment", f"the state cannot be stored: {type(value).__name__}{_culprit(value)}: {error}"
        ) from error


def _culprit(value: object) -> str:
    """Return where in a value the part is that msgpack cannot encode, such as `.cards[2].owner`; "": the value itself."""
    parts: list[tuple[str, object]] = []
    if isinstance(value, msgspec.Struct):
        parts = [(f".{name}", getattr(value, name)) for name in value.__struct_fields__]
    elif isinstance(value, dict):
        parts = [(f"[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [(f"[{i}]", part) for i, part in enumerate(value)]
    for name, part in parts:
        try:
            msgspec.msgpack.encode(part)
        except (TypeError, ValueError, OverflowError):
            return name + _culprit(part)
    return ""


def number(noun: str, value: object) -> float:
    """Return a reward or metric as a float.

    Args:
        noun: the value's name in an error, as "the reward".
        value: the verifier's value.

    Raises:
        CallError: `verifier`: it is no number, or not finite.
    """
    if not isinstance(value, Real):
        raise CallError("verifier", f"{noun} is {type(value).__name__} {str(value)[:80]!r}, not a number")
    result = float(value)
    if not math.isfinite(result):
        raise CallError("verifier", f"{noun} is {result}: a reward must be finite; return None if there is none")
    return result


def too_large(call: Call, size: int) -> CallError:
    """Return the error of a call whose value is too large.

    Args:
        call: the call.
        size: the value's bytes.
    """
    return CallError(
        "result_too_large",
        f"{callable_name(call)} returned {size >> 20} MiB; a result and its state may have {MAX_RESULT_BYTES >> 20} MiB",
    )


def _wrong(call: Call, problem: str) -> CallError:
    return CallError("verifier" if call.kind == "verify" else "environment", f"{call.kind} {problem}")


def _is_part(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") in PART_TYPES


def _plain(value: object) -> object:
    for method in ("model_dump", "tolist"):
        convert = getattr(value, method, None)
        if convert is not None:
            return convert()
    raise TypeError(f"{type(value).__name__} is no JSON value")
