"""Outages: exceptions of an environment's code that mean a silent service, which may pass, as against a defect."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

from gymq.errors import Unavailable

#: HTTP statuses below 500 that may pass: time-out, too early, too many requests.
_PASSING = frozenset({408, 425, 429})

#: Operating-system errors about a service; others are about this machine's files, memory and limits.
_REMOTE = (ConnectionError, TimeoutError, socket.gaierror, socket.herror, ssl.SSLError)

#: Numbers of such errors that have no class of their own.
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
    """Return whether an exception, or one that it was raised from, means that a service does not answer."""
    for cause in _chain(error):
        if isinstance(cause, Unavailable):
            return True
        status = _status(cause)
        if status is not None:
            return status >= 500 or status in _PASSING  # the service has answered, and its answer decides
        kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(cause).__mro__}
        if kinds & _BY_NAME or isinstance(cause, _REMOTE) or (isinstance(cause, OSError) and cause.errno in _REMOTE_NUMBERS):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        reason = getattr(cause, "reason", None)  # of urllib's URLError
        if isinstance(reason, BaseException):
            yield reason
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None
