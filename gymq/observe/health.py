"""Whether a process lives and takes work: `/healthz` and `/readyz` beside `/metrics`, as Kubernetes asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def _yes() -> bool:
    return True


class Health(msgspec.Struct, frozen=True):
    """A process's answers; by default it lives and is ready because it answers at all.

    Args:
        alive: whether its loop turns. An outage of Redis is no reason to say no: to start it again would mend nothing.
        ready: whether it takes work now.
    """

    alive: Callable[[], bool] = _yes
    ready: Callable[[], bool] = _yes


def with_health(metrics: WSGIApplication, health: Health) -> WSGIApplication:
    """Return an application that answers `/healthz` and `/readyz` by 200 or 503, and all else as `metrics` does.

    Args:
        metrics: the application that has `/metrics`.
        health: tells whether the worker lives, and whether it is ready.
    """
    answers = {"/healthz": health.alive, "/readyz": health.ready}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = answers.get(environ["PATH_INFO"])
        if asked is None:
            return metrics(environ, start_response)
        well = asked()
        start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"yes\n" if well else b"no\n"]

    return answer
