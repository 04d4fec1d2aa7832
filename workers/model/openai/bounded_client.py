"""The HTTP client of the library `openai`, whose every body is bounded: answers, errors and event streams, packed or not."""

from __future__ import annotations

import sys
import zlib
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import openai

from .endpoint import CONNECT_TIMEOUT, KEEP_ALIVE, LARGEST_BODY, LARGEST_ERROR

#: The library's HTTP client (httpx, renamed in 3.0), whose exceptions come through while a body is read.
http: ModuleType = sys.modules[openai.DefaultAsyncHttpxClient.__bases__[0].__module__]

#: Bytes of a streamed answer at most: 128k tokens take 40 MB, 1 kB each with their logprobs.
LARGEST_STREAM = 2 * LARGEST_BODY

#: Bytes of one event of a stream at most: the last one of a Responses answer holds all of it. The library copies what it has of
#: an event with every piece that comes, and makes objects of it that are ten times as large.
LARGEST_EVENT = 8 * 1024 * 1024

#: Bytes that are unpacked at once.
_PIECE = 64 * 1024

#: The encodings that are unpacked, though none is asked for: some proxies pack all the same.
_PACKED = frozenset({"gzip", "x-gzip", "deflate"})

#: What ends an event; whichever is used, it is used throughout.
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")

#: A body as the client reads it, seen as untyped.
_ByteStream: Any = http.AsyncByteStream


class TooLarge(Exception):
    """The end of a body that is larger than any answer.

    Args:
        message: what is too large.
    """


class Unreadable(Exception):
    """The end of a body that is packed in a way that cannot be read."""


def bounded_client(timeout: float) -> Any:
    """Return the library's client for one endpoint. Of an error's body it reads the beginning; of others all, or none.

    Args:
        timeout: seconds that one try may take.
    """
    return openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        limits=http.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE),
        timeout=http.Timeout(timeout, connect=CONNECT_TIMEOUT),
        # Not a transport of its own: with one the client would pass over the environment's proxies.
        event_hooks={"response": [_bound]},
    )


async def _bound(response: Any) -> None:
    """Bound a response's body before a byte of it is read, and unpack it here, where that is bounded too."""
    encoding = response.headers.pop("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        unpack = None
    elif encoding in _PACKED:
        unpack = zlib.decompressobj(wbits=47)  # 47: gzip or zlib, as its head says
    else:
        raise Unreadable(f"its answer is packed as {encoding}, though none was asked for")
    if response.status_code != 200:
        largest, largest_event = LARGEST_ERROR, None
    elif response.headers.get("Content-Type", "").startswith("text/event-stream"):
        largest, largest_event = LARGEST_STREAM, LARGEST_EVENT
    else:
        largest, largest_event = LARGEST_BODY, None
    response.stream = _Bounded(response.stream, unpack, largest, largest_event, response.status_code != 200)


class _Bounded(_ByteStream):
    """A body that ends where it becomes too large.

    Args:
        body: the body.
        unpack: unpacks it; None: it is not packed.
        largest: its bytes at most, unpacked.
        largest_event: bytes of one event at most; None: it is no event stream.
        cut: whether it ends quietly there.
    """

    def __init__(self, body: Any, unpack: Any, largest: int, largest_event: int | None, cut: bool) -> None:
        self._body = body
        self._unpack = unpack
        self._largest = largest
        self._largest_event = largest_event
        self._cut = cut

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left, event, end_of_last = self._largest, 0, b""
        async for piece in self._pieces():
            left -= len(piece)
            if left < 0:
                if not self._cut:
                    raise TooLarge(f"more than {self._largest >> 20} MiB")
                yield piece[:left]
                return
            if self._largest_event is not None:
                window = end_of_last + piece
                blank = max(map(window.rfind, _BLANK_LINES))
                event = len(window) - blank if blank >= 0 else event + len(piece)
                end_of_last = window[-3:]
                if event > self._largest_event:
                    raise TooLarge(f"an event of more than {self._largest_event >> 20} MiB")
            yield piece

    async def aclose(self) -> None:
        """Close the connection, or keep it for the next request if the body was read to its end."""
        await self._body.aclose()

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Yield the body unpacked, a piece at a time."""
        async for raw in self._body:
            if self._unpack is None:
                yield raw
                continue
            packed, piece = raw, b""
            while packed or len(piece) == _PIECE:
                try:
                    piece = self._unpack.decompress(packed, _PIECE)
                except zlib.error:
                    raise Unreadable("its answer is not packed as it says") from None
                packed = self._unpack.unconsumed_tail
                yield piece
