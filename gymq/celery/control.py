"""Remote control: `celery -A gymq inspect stats`, `celery -A gymq control pause|resume|drain`.

Celery's control messages come at most once, so they carry no state: `pause` and `resume` write to Redis what is wanted
and wake the workers that hear them; the others see it at their next sweep.
"""

from __future__ import annotations

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
from typing import Any, Protocol

import redis
from celery.worker import control
from celery.worker import state as requests

from gymq.runtime.worker_host import WorkerHost
from gymq.settings import Settings
from gymq.store.sync_connection import sync_connections

#: Celery's registry of commands, seen as untyped.
_control: Any = control

#: What a command answers: `ok` or `error`, or the numbers that were asked for.
Reply = dict[str, object]


class Controller(Protocol):
    """Celery's worker, with the host that the step of its role has put there."""

    gymq: WorkerHost

    def stats(self) -> Reply:
        """Return Celery's own numbers."""
        ...


class Consumer(Protocol):
    """Celery's consumer."""

    controller: Controller
    pool: object


class PanelState(Protocol):
    """The argument that Celery hands to each command."""

    consumer: Consumer


def stats(state: PanelState, **_: object) -> Reply:
    """Request worker statistics/information; `gymq` holds the actor's own.

    Args:
        state: Celery's.
        **_: the command's other arguments, of no account.
    """
    return state.consumer.controller.stats() | {"gymq": state.consumer.controller.gymq.stats()}


def pause(state: PanelState, **_: object) -> Reply:
    """Stop admitting rollouts; those in flight go on.

    Args:
        state: Celery's.
        **_: the command's other arguments, of no account.
    """
    return _want(state, paused=True)


def resume(state: PanelState, **_: object) -> Reply:
    """Admit rollouts again.

    Args:
        state: Celery's.
        **_: the command's other arguments, of no account.
    """
    return _want(state, paused=False)


def look(state: PanelState, **_: object) -> Reply:
    """Look now at what is wanted: weights, admissions.

    Args:
        state: Celery's.
        **_: the command's other arguments, of no account.
    """
    state.consumer.controller.gymq.wake()
    return _control.ok("looking")


def drain(state: PanelState, **_: object) -> Reply:
    """Finish what the worker holds, then shut it down.

    Args:
        state: Celery's.
        **_: the command's other arguments, of no account.
    """
    state.consumer.controller.gymq.drain()
    return _control.ok("draining")


def shutdown(state: PanelState, msg: str = "", **_: object) -> Reply:
    """Shutdown worker(s), once what they hold is finished.

    Args:
        state: Celery's.
        msg: the reason, for the log.
        **_: the command's other arguments, of no account.
    """
    return drain(state)


def abort(state: PanelState, calls: list[str], **_: object) -> Reply:
    """Kill isolated calls that are no longer pending, where this worker has them.

    Args:
        state: Celery's.
        calls: their ids.
    """
    mine = [request for request in list(requests.reserved_requests) if request.id in calls]
    for request in mine:
        request.terminate(state.consumer.pool, signal="SIGKILL")
    return _control.ok(f"{len(mine)} calls killed")


def install() -> None:
    """Register the commands; `stats` and `shutdown` replace Celery's own."""
    _control.inspect_command(alias="dump_stats")(stats)
    for command in (pause, resume, look, drain, shutdown, abort):
        _control.control_command()(command)


def _want(state: PanelState, paused: bool) -> Reply:
    try:
        for client in sync_connections(Settings.from_environment(), "gymq-control"):
            key = client.keys.paused
            client.do(lambda server, key=key: server.set(key, "1") if paused else server.delete(key))  # type: ignore[misc]
            client.close()
    except redis.RedisError as error:
        return _control.nok(f"Redis cannot be reached: {error}")
    state.consumer.controller.gymq.wake()
    return _control.ok("paused" if paused else "resumed")
