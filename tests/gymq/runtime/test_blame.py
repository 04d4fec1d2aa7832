"""The blame for a process's end: what says nothing of its mail counts no death."""

from __future__ import annotations

import asyncio
import errno

import pytest

from gymq.errors import GymqError, ServerUnreachable
from gymq.runtime.blame import exhausted, is_on_mail
from gymq.store.connection import AccessRefused, Outage, ServerFull
from tests.support.call_server import BOX, Server, call
from tests.support.shard import keys
from tests.support.waiting import until


@pytest.mark.parametrize(
    "error",
    [
        Outage("NOREPLICAS"),
        ServerFull("OOM"),
        ServerUnreachable("it is away"),
        AccessRefused("NOPERM"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        RuntimeError("can't start new thread"),
    ],
)
def test_an_error_over_redis_or_over_something_that_ran_out_is_not_the_mails(error):
    assert not is_on_mail(error)


@pytest.mark.parametrize("error", [GymqError("Redis refused EVALSHA: ERR"), ValueError("x"), OSError(errno.EINVAL, "x")])
def test_any_other_error_may_be_the_mails(error):
    assert is_on_mail(error)


def test_an_error_that_was_raised_from_want_is_want():
    try:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as want:
            raise ValueError("no file") from want
    except ValueError as error:
        assert exhausted(error)


@pytest.mark.parametrize(("error", "deaths"), [(Outage("NOREPLICAS"), 0), (ValueError("a defect"), 1)])
@pytest.mark.parametrize("where", ["a task", "the intake"])
async def test_a_process_that_ends_hands_its_mail_back_and_counts_a_death_only_where_it_may_be_to_blame(
    settings, connection, error, deaths, where
):
    # Given a worker that holds mail
    worker = Server(settings)
    life = asyncio.create_task(worker.main())
    await until(lambda: worker.worker)
    await call(connection, 1, "wait")
    await until(lambda: worker.started)

    async def fail(*_: object) -> None:
        raise error

    # When it meets an error, in a task or where it takes mail
    if where == "a task":
        worker.spawn(fail())
    else:
        worker.intake._handle = fail
        await call(connection, 2, "wait")
    # Then it ends with that error, and its mail waits for others
    with pytest.raises(type(error)):
        await asyncio.wait_for(life, 10)
    entries = await connection.send("XRANGE", keys.retry(BOX), "-", "+")
    assert [fields[-2:] for _, fields in entries] == [[b"a", b"%d" % deaths]] * (1 if where == "a task" else 2)
