"""A call of a Lua script with typed arguments and a typed reply, and the encoding of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

import msgpack
import msgspec
from msgspec.structs import astuple

T = TypeVar("T")


class ScriptCall(msgspec.Struct, Generic[T], frozen=True):
    """One call of a script, ready for any connection.

    Args:
        name: name of the Lua file, without its extension.
        arguments: ARGV, in the script's order.
        decode: turns Redis's raw reply into the typed one.
    """

    name: str
    arguments: tuple[str | bytes | int, ...]
    decode: Callable[[Any], T]

    @property
    def source(self) -> bytes:
        """The Lua text."""
        return source(self.name)


@cache
def source(name: str) -> bytes:
    """Read the Lua text of a script."""
    return files("gymq.store.lua").joinpath(f"{name}.lua").read_bytes()


def _positional(struct: msgspec.Struct) -> tuple[object, ...]:
    """Return a struct's fields as the script counts them, without the unset ones at the end."""
    values = astuple(struct)
    while values[-1] is None:
        values = values[:-1]
    return values


_packer = msgpack.Packer(use_bin_type=False, default=_positional)


def pack(value: object) -> bytes:
    """Encode an argument as msgpack; structs become arrays of their fields.

    The server's Lua reads only the old msgpack, in which bytes and text are one type; msgspec cannot write that.
    """
    data: bytes = _packer.pack(value)
    return data
