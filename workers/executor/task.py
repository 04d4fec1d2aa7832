"""The Celery task that runs one isolated call, in a child that its parent may kill at any moment."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import redis
from billiard.common import terminate_handler_fired
from kombu.exceptions import OperationalError

from gymq.api.environment import DEFAULT_TIMEOUT
from gymq.celery import app
from gymq.celery.queues import EXECUTOR, ISOLATED, ISOLATED_QUEUE
from gymq.errors import CallError, FaultKind
from gymq.runtime.reply import send_sync
from gymq.store.connection import script
from gymq.store.sync_connection import SyncConnection, sync_connections
from gymq.wire.calls import SCHEMA, Call, Reply, encode
from gymq.wire.message import Conversation
from gymq.wire.task import decode_task

from ..invocation.invoke import invoke
from . import processes
from .parent import ExecutorStep, Undelivered, current, of
from .request import read

#: Tries to reach Redis, one a second. Then a child leaves a call that it has not begun: it is sent again; and gives the reply
#: of one that it has done to its parent, which has no limit of time.
SUBMIT_TRIES = 5

T = TypeVar("T")

app.steps["worker"].add(ExecutorStep)

_clients: dict[int, list[SyncConnection]] = {}


@app.task(
    name=ISOLATED,
    Request="gymq_workers.executor.request:IsolatedRequest",
    time_limit=DEFAULT_TIMEOUT,
    # Late, so that an executor holds no more calls than it has children; always, for each of its ends is answered.
    acks_late=True,
    acks_on_failure=True,
    acks_on_timeout=True,
    reject_on_worker_lost=False,
)
def isolated(body: str, schema: int = 1) -> None:
    """Run a call and reply to it.

    Args:
        body: the encoded call in base64, as `submit` takes it.
        schema: its schema.
    """
    if schema > SCHEMA:
        print(f"gymq: executor: isolated call of a newer schema ({schema}); start newer executors", file=sys.stderr)
        return  # nobody has begun: its resource worker sends it again
    call = read(body)
    if call is None:
        return
    client = of(_shards(), call)
    try:
        if not _insist(lambda: _claim(client, call)):
            return
    except (redis.RedisError, OSError):
        return
    started = time.time()
    value, fault = b"", None
    try:
        value = _work(call)
    except CallError as error:
        fault = error.fault
    finally:
        if processes.has_children():
            processes.kill_children()
        current().tidy()
    reply = Reply(n=call.n, started=started, finished=time.time(), worker=current().name, fault=fault, value=value)
    try:
        _insist(lambda: send_sync(client, call, reply))
    except (redis.RedisError, OSError):
        raise Undelivered(encode(reply)) from None


def submit(call: Call, timeout: float) -> None:
    """Send a call to the executors; blocks on the network, so not on a loop.

    Args:
        call: the call with its state, and what it asks for of its task and its messages (all of them, `seen` is 0).
        timeout: seconds that it may take once a child has begun; then it is killed.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    what = f"{call.environment}.{call.name or call.kind}"
    with _closed_channels():
        isolated.apply_async(
            (base64.b64encode(encode(call)).decode(), SCHEMA),
            task_id=call.id,
            time_limit=timeout,
            argsrepr=f"{what} {call.id}",
            kwargsrepr="",
        )


def none_waits() -> bool:
    """Whether no call waits for an executor; blocks on the network, so not on a loop.

    Raises:
        kombu.exceptions.OperationalError, redis.RedisError: Redis cannot be reached.
    """
    with _closed_channels(), app.connection_or_acquire() as connection, connection.channel() as channel:
        return bool(channel.queue_declare(ISOLATED_QUEUE).message_count == 0)


@contextmanager
def _closed_channels() -> Iterator[None]:
    """After an error (the server is full, say) kombu may keep a channel without its connection, and stumbles over it."""
    try:
        yield
    except AttributeError as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        if "kombu" not in Path(last.filename).parts:
            raise
        raise OperationalError(f"the channel was closed: {error}") from error


def abort(ids: list[str]) -> None:
    """Kill calls that nobody wants any more, wherever they run. The word is said once; who misses it runs on to its limit.

    Args:
        ids: of the calls.
    """
    app.control.broadcast("abort", arguments={"calls": ids})


def _work(call: Call) -> bytes:
    if call.has_state and call.state is None:
        raise CallError("environment", f"call {call.id} came to the executor without its state")
    messages = None if call.seen or len(call.messages) != call.length else Conversation(call.messages)
    task = None if call.task is None else decode_task(call.task)
    try:
        with processes.limits():
            return asyncio.run(invoke(call, task, messages))
    except CallError as error:
        if error.fault.kind == "memory":
            raise CallError(
                "memory", f"asked for more than {processes.DEFAULT_MEMORY >> 20} MiB: {error.fault.message}"
            ) from error
        raise
    except MemoryError:
        raise CallError("memory", f"asked for more than {processes.DEFAULT_MEMORY >> 20} MiB") from None
    except BaseException as error:
        if terminate_handler_fired():
            raise  # the parent wants this process gone and sees to the call
        kind: FaultKind = "verifier" if call.kind == "verify" else "environment"
        raise CallError(kind, f"{type(error).__name__}: {error}") from error


def _claim(client: SyncConnection, call: Call) -> bool:
    """Mark the call started; False: this message is a copy, of a call that is answered or that an executor works on.

    Both are looked at in one script: a call that is answered between two looks would be run again.
    """
    arguments = [call.rollout, call.step, call.n, call.idempotency_token, current().name, int(call.kind == "close")]

    def claim(server: redis.Redis) -> bool:
        run: Any = server.register_script(script("claim"))
        return bool(run(keys=[client.keys.prefix], args=arguments))

    return client.do(claim)


def _insist(what: Callable[[], T]) -> T:
    for _ in range(SUBMIT_TRIES - 1):
        try:
            return what()
        except (redis.RedisError, OSError):
            time.sleep(1)
    return what()


def _shards() -> list[SyncConnection]:
    # Of each process its own; what a fork inherited is never used.
    found = _clients.get(os.getpid())
    if found is None:
        _clients.clear()
        found = _clients[os.getpid()] = sync_connections(current().settings, EXECUTOR)
    return found
