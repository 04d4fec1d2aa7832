"""Which exceptions of an environment's code tell of a service that does not answer."""

from __future__ import annotations

import socket
import ssl
import urllib.error
from types import SimpleNamespace

import aiohttp
import pytest
from gymq_workers.invocation.outage import is_outage

from gymq import Unavailable


class Status(Exception):
    """An error of some client, with the status of the answer."""

    def __init__(self, **fields) -> None:
        super().__init__("no")
        vars(self).update(fields)


def of(package: str, name: str, base: type[Exception] = Exception) -> Exception:
    """An exception of a library that is not installed here."""
    kind = type(name, (base,), {"__module__": f"{package}._exceptions"})
    return type("Special", (kind,), {"__module__": f"{package}.special"})("x")


def raised(outer: Exception, inner: Exception, how: str) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            if how == "from":
                raise outer from error
            if how == "hidden":
                raise outer from None
            raise outer  # noqa: B904
    except Exception as error:
        return error


OUTAGES = [
    Unavailable("down"), ConnectionRefusedError(), ConnectionResetError(), TimeoutError(), OSError(113, "no route"),
    socket.gaierror(-3, "no name"), ssl.SSLEOFError(), Status(status=503), Status(status_code=429), Status(status=408),
    Status(response=SimpleNamespace(status_code=500)), Status(status_code=425),
    urllib.error.HTTPError("http://x", 502, "bad", None, None), urllib.error.URLError(ConnectionRefusedError()),
    aiohttp.ServerDisconnectedError(), aiohttp.ClientPayloadError(), aiohttp.ClientConnectionError(),
    of("httpx", "NetworkError"), of("httpx", "TimeoutException"), of("requests", "ConnectionError", OSError),
    of("openai", "APIConnectionError"), raised(RuntimeError("judge"), ConnectionRefusedError(), "from"),
    raised(RuntimeError("judge"), TimeoutError(), "while"),
]  # fmt: skip

DEFECTS = [
    ValueError(), KeyError("secret"), FileNotFoundError(), PermissionError(), Status(status=404), Status(status_code=401),
    Status(response=SimpleNamespace(status_code=400)), Status(status="503"), Status(status=True),
    urllib.error.HTTPError("http://x", 404, "none", None, None), of("requests", "InvalidURL", OSError),
    of("httpx", "InvalidURL"),
    raised(ValueError("bad"), ConnectionRefusedError(), "hidden"), raised(RuntimeError("x"), KeyError("y"), "from"),
    raised(Status(status=403), TimeoutError(), "from"),
]  # fmt: skip


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_an_outage_is_one(error):
    assert is_outage(error)


@pytest.mark.parametrize("error", DEFECTS, ids=repr)
def test_a_defect_is_none(error):
    assert not is_outage(error)


def test_errors_that_caused_each_other_end():
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert not is_outage(one)
