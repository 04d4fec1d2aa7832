"""Remote control: `celery -A gymq inspect stats`, `celery -A gymq control pause|resume|drain`.

Celery's control messages come at most once, so they carry no state: `pause` and `resume` write what is wanted to Redis
and then wake those who hear it; the others see it when they look.
"""

from __future__ import annotations

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
from typing import Any

import redis
from celery.worker import control
from celery.worker import state as requests

from gymq.runtime.worker_host import WorkerHost
from gymq.settings import Settings
from gymq.store.sync_connection import sync_connections

#: Celery's registry of commands, seen as untyped.
_control: Any = control


def stats(state: Any, **_: Any) -> dict[str, Any]:
    """Request worker statistics/information; `gymq` holds the actor's own."""
    found: dict[str, Any] = state.consumer.controller.stats()
    found["gymq"] = _host(state).stats()
    return found


def pause(state: Any, **_: Any) -> dict[str, Any]:
    """Stop admitting rollouts; those in flight go on."""
    return _want(state, paused=True)


def resume(state: Any, **_: Any) -> dict[str, Any]:
    """Admit rollouts again."""
    return _want(state, paused=False)


def look(state: Any, **_: Any) -> dict[str, Any]:
    """Look now at what is wanted: weights, admissions."""
    _host(state).wake()
    return _control.ok("looking")


def drain(state: Any, **_: Any) -> dict[str, Any]:
    """Finish what the worker holds, then shut it down."""
    _host(state).drain()
    return _control.ok("draining")


def shutdown(state: Any, msg: str = "", **_: Any) -> dict[str, Any]:
    """Shutdown worker(s); what it holds is seen to first."""
    return drain(state)


def abort(state: Any, calls: list[str], **_: Any) -> dict[str, Any]:
    """Kill isolated calls that nobody wants any more; who has none of them does nothing."""
    mine = [request for request in list(requests.reserved_requests) if request.id in calls]
    for request in mine:
        request.terminate(state.consumer.pool, signal="SIGKILL")
    return _control.ok(f"{len(mine)} calls killed")


def install() -> None:
    """Register the commands; `stats` and `shutdown` replace Celery's own."""
    _control.inspect_command(alias="dump_stats")(stats)
    for command in (pause, resume, look, drain, shutdown, abort):
        _control.control_command()(command)


def _host(state: Any) -> WorkerHost:
    host: WorkerHost = state.consumer.controller.gymq
    return host


def _want(state: Any, paused: bool) -> dict[str, Any]:
    try:
        for client in sync_connections(Settings.from_environment(), "gymq-control"):
            key = client.keys.paused
            client.do(lambda server, key=key: server.set(key, "1") if paused else server.delete(key))  # type: ignore[misc]
            client.close()
    except redis.RedisError as error:
        return _control.nok(f"Redis cannot be reached: {error}")
    _host(state).wake()
    return _control.ok("paused" if paused else "resumed")
