"""What environments give, as it is sent and stored: results, messages, questions, numbers and states.

Whatever has no such form, or is too large, is the environment's fault, and is said in one line.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import msgspec

from gymq.api.environment import Ask
from gymq.errors import CallError
from gymq.wire.calls import Asked, Call
from gymq.wire.message import Message, encode_message

#: Bytes that the value of a call may have: a dozen photographs, far more text than a model reads; and Redis, the agent and
#: every later request of the rollout must carry it.
MAX_RESULT_BYTES = 16 * 1024**2

#: The types of content parts; a tool's list of such objects goes to the model as it is.
PART_TYPES = frozenset({"text", "image_url", "input_audio", "file"})


def callable_name(call: Call) -> str:
    """What a call runs, for a person: `environment.tool`."""
    return f"{call.environment}.{call.name or call.kind}"


def content(call: Call, result: Any) -> bytes:
    """A tool's result as the content of a message: text, or content parts.

    Args:
        call: the tool's.
        result: what it returned.

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
        CallError: one is none.
    """
    wrong = next((message for message in messages if not isinstance(message, Message)), None)
    if wrong is not None:
        raise _wrong(call, f"gave a message of type {type(wrong).__name__}; make it a gymq Message")
    return [encode_message(message) for message in messages]


def asked(call: Call, ask: Ask) -> Asked:
    """A question to a model, encoded.

    Args:
        call: whose hook asks.
        ask: the question.

    Raises:
        CallError: it has no messages, or a part of it cannot be sent.
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


def json(call: Call, what: str, value: Any) -> bytes:
    """A value as JSON; pydantic models and numpy's arrays and scalars have a form, too.

    Args:
        call: what gave it.
        what: what it is, for a person.
        value: the value.

    Raises:
        CallError: `environment`: it has no such form; `result_too_large`.
    """
    if isinstance(value, str) and len(value) > MAX_RESULT_BYTES:  # not worth encoding
        raise too_large(call, len(value))
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise CallError("environment", f"{call.name or call.kind}: {what} has no JSON form: {error}") from error


def state(value: Any) -> bytes:
    """An environment's state, encoded.

    Raises:
        CallError: it has a part that cannot be stored.
    """
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise CallError("environment", f"the state cannot be stored: {error}") from error


def number(what: str, value: Any) -> float:
    """A reward or metric.

    Args:
        what: what it is, for a person.
        value: what the verifier gave.

    Raises:
        CallError: `verifier`: it is no number, or not finite.
    """
    if not isinstance(value, Real):
        raise CallError("verifier", f"{what} is {type(value).__name__} {str(value)[:80]!r}, not a number")
    found = float(value)
    if not math.isfinite(found):
        raise CallError("verifier", f"{what} is {found}: a reward must be finite; return None if there is none")
    return found


def too_large(call: Call, size: int) -> CallError:
    """What a call with a value of so many bytes ends with."""
    return CallError(
        "result_too_large",
        f"{callable_name(call)} gave {size >> 20} MiB; a result and its state may have {MAX_RESULT_BYTES >> 20} MiB",
    )


def _wrong(call: Call, what: str) -> CallError:
    return CallError("verifier" if call.kind == "verify" else "environment", f"{call.kind} {what}")


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") in PART_TYPES


def _plain(value: Any) -> Any:
    for method in ("model_dump", "tolist"):
        convert = getattr(value, method, None)
        if convert is not None:
            return convert()
    raise TypeError(f"{type(value).__name__} is no JSON value")
