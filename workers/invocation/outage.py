"""Whether an exception of an environment's code means that a service does not answer, which may pass, or a defect."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

from gymq.errors import Unavailable

#: Statuses below 500 that may pass: time-out, too early, too many requests.
_PASSING = frozenset({408, 425, 429})

#: Operating-system errors that tell of a service; the others tell of this machine's files, memory and limits.
_REMOTE = (ConnectionError, TimeoutError, socket.gaierror, socket.herror, ssl.SSLError)

#: The same, of those that have no class of their own.
_REMOTE_NUMBERS = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENETRESET})

#: Connection and time-out errors of libraries that may not be installed, by package and class.
_BY_NAME = frozenset(
    {
        ("aiohttp", "ClientConnectionError"), ("aiohttp", "ClientPayloadError"),
        ("httpx", "NetworkError"), ("httpx", "TimeoutException"), ("httpx", "RemoteProtocolError"),
        ("requests", "ConnectionError"), ("requests", "Timeout"), ("requests", "ChunkedEncodingError"),
        ("openai", "APIConnectionError"),
    }
)  # fmt: skip


def is_outage(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, says that a service does not answer."""
    for one in _chain(error):
        if isinstance(one, Unavailable):
            return True
        status = _status(one)
        if status is not None:
            return status >= 500 or status in _PASSING  # a service that answered: what it said decides
        kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(one).__mro__}
        if kinds & _BY_NAME or isinstance(one, _REMOTE) or (isinstance(one, OSError) and one.errno in _REMOTE_NUMBERS):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        reason = getattr(one, "reason", None)  # of urllib's URLError
        if isinstance(reason, BaseException):
            yield reason
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None
