"""The serializer of Celery's message bodies: JSON, written and read by msgspec, so that structs need no conversion.

The content is plain JSON: a client without gymq may send with Celery's own `json` serializer instead. Nothing here or
elsewhere accepts pickle.
"""

from __future__ import annotations

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
from typing import Any

import msgspec
from kombu import serialization

#: The name under which kombu knows it.
NAME = "msgspec"

#: What a message's header says of its body.
CONTENT_TYPE = "application/x-msgspec+json"

#: What our workers take.
ACCEPT = [NAME, "json"]


def dumps(value: Any) -> str:
    """Encode a message body; text, so that kombu need not wrap it in base64.

    Raises:
        TypeError: a value has no JSON form.
    """
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def loads(data: str | bytes) -> Any:
    """Decode a message body.

    Raises:
        msgspec.DecodeError: it is not JSON.
    """
    return msgspec.json.decode(data)


def register() -> None:
    """Tell kombu of the serializer; may be called twice."""
    kombu: Any = serialization
    kombu.register(NAME, dumps, loads, content_type=CONTENT_TYPE, content_encoding="utf-8")


def _plain(value: Any) -> Any:
    # Celery's own objects, signatures above all, say how they want to be written.
    to_json = getattr(value, "__json__", None)
    if to_json is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return to_json()
