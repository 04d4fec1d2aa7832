"""The Celery task that runs one isolated call, in a child process that its parent may kill at any moment."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import redis
from billiard.common import terminate_handler_fired
from kombu.exceptions import OperationalError

from gymq.api.environment import DEFAULT_TIMEOUT
from gymq.celery import app
from gymq.celery.queues import EXECUTOR, ISOLATED, ISOLATED_QUEUE
from gymq.errors import CallError, FaultKind
from gymq.observe.events import outcome
from gymq.observe.work import work_in_hand
from gymq.runtime.reply import send_sync
from gymq.store import scripts
from gymq.store.sync_connection import SyncConnection, sync_connections
from gymq.wire.calls import SCHEMA, Call, Reply, encode
from gymq.wire.message import Conversation
from gymq.wire.task import decode_task

from ..invocation.invoke import invoke
from ..invocation.result_encoding import callable_name
from . import processes
from .parent import ExecutorStep, Undelivered, current, shard_of
from .request import read_call

log = logging.getLogger(__name__)

#: Tries to reach Redis, one a second. After them a child drops a call that it has not begun, since it is sent again, and
#: leaves the reply of a finished one to its parent, which has no time limit.
REDIS_TRIES = 5

T = TypeVar("T")

app.steps["worker"].add(ExecutorStep)

_clients: dict[int, list[SyncConnection]] = {}


@app.task(
    name=ISOLATED,
    Request="gymq_workers.executor.request:IsolatedRequest",
    time_limit=DEFAULT_TIMEOUT,
    # Late, so that an executor holds no more calls than it has children; and always, since each end has a reply.
    acks_late=True,
    acks_on_failure=True,
    acks_on_timeout=True,
    reject_on_worker_lost=False,
)
def isolated(body: str, schema: int = 1) -> str | None:
    """Run a call and reply to it; return its outcome, as `CallFinished` has it; None: another process has replied or will.

    Args:
        body: the encoded call in base64, as `submit` sends it.
        schema: the call's schema.
    """
    if schema > SCHEMA:
        log.warning("isolated call of a newer schema (%d); start newer executors", schema)
        return None  # unclaimed, so that its resource worker sends it again
    call = read_call(body)
    if call is None:
        return None
    client = shard_of(_shards(), call)
    try:
        if not _retry(lambda: _claim(client, call)):
            return None
    except (redis.RedisError, OSError):
        return None
    started = time.time()
    value, fault = b"", None
    in_hand = work_in_hand.set(call)
    try:
        value = _work(call)
    except CallError as error:
        fault = error.fault
    finally:
        work_in_hand.reset(in_hand)
        if processes.has_children():
            processes.kill_children()
        current().tidy()
    reply = Reply(n=call.n, started=started, finished=time.time(), worker=current().name, fault=fault, value=value)
    try:
        merged = _retry(lambda: send_sync(client, call, reply))
    except (redis.RedisError, OSError):
        raise Undelivered(encode(reply)) from None
    return outcome(reply, merged)


def submit(call: Call, timeout: float) -> None:
    """Send a call to the executors; blocks on the network.

    Args:
        call: the call with its state, and its task and all messages if it asks for them.
        timeout: seconds from a child's beginning until the call is killed.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    with _closed_channels():
        isolated.apply_async(
            (base64.b64encode(encode(call)).decode(), SCHEMA),
            task_id=call.id,
            time_limit=timeout,
            argsrepr=f"{callable_name(call)} {call.id}",
            kwargsrepr="",
        )


def none_waits() -> bool:
    """Return whether the queue of isolated calls is empty; blocks on the network.

    Raises:
        kombu.exceptions.OperationalError, redis.RedisError: Redis cannot be reached.
    """
    with _closed_channels(), app.connection_or_acquire() as connection, connection.channel() as channel:
        return bool(channel.queue_declare(ISOLATED_QUEUE).message_count == 0)


@contextmanager
def _closed_channels() -> Iterator[None]:
    """Turn into an OperationalError that kombu, after an error such as a full server, keeps a channel without connection."""
    try:
        yield
    except AttributeError as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        if "kombu" not in Path(last.filename).parts:
            raise
        raise OperationalError(f"the channel was closed: {error}") from error


def abort(ids: list[str]) -> None:
    """Have calls without a waiting rollout killed; an executor that misses the broadcast lets them run to their limit.

    Args:
        ids: the calls' ids.
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
            raise  # the parent ends this process, and replies
        kind: FaultKind = "verifier" if call.kind == "verify" else "environment"
        raise CallError(kind, f"{type(error).__name__}: {error}") from error


def _claim(client: SyncConnection, call: Call) -> bool:
    """Mark the call started; return False for a copy of a call that has a reply or that an executor works on.

    One script checks both: a call that is answered between two checks would be run again.
    """
    always = call.kind == "close"
    return client.run(scripts.claim_call(call.rollout, call.step, call.n, call.idempotency_token, current().name, always))


def _retry(what: Callable[[], T]) -> T:
    for _ in range(REDIS_TRIES - 1):
        try:
            return what()
        except (redis.RedisError, OSError):
            time.sleep(1)
    return what()


def _shards() -> list[SyncConnection]:
    # Each process has its own connections; a fork never uses those that it inherited.
    connections = _clients.get(os.getpid())
    if connections is None:
        _clients.clear()
        connections = _clients[os.getpid()] = sync_connections(current().settings, EXECUTOR)
    return connections
