"""Dead letters as people handle them: listed, shown, replayed, dropped. `gymq.runtime.dead_letters` writes them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from gymq.errors import UNREADABLE, UnknownName, UsageError
from gymq.runtime.dead_letters import DeadLetter
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards
from gymq.store.task_ledger import TaskLedger
from gymq.wire.ids import place
from gymq.wire.message import encode_message
from gymq.wire.record import RolloutRecord, narrow
from gymq.wire.rollout import rollout_of_entry

log = logging.getLogger(__name__)

#: Entries that one command reads: a few milliseconds of the server's time.
PAGE = 500

_decoder = msgspec.msgpack.Decoder(DeadLetter)
_record_decoder = msgspec.json.Decoder(narrow(RolloutRecord, "messages"))


@dataclass
class StoredLetter:
    """A dead letter and the stream entry that holds it."""

    connection: Connection
    entry: bytes
    letter: DeadLetter


async def list_letters(shards: Shards, run: str | None = None) -> list[StoredLetter]:
    """Return the dead letters, oldest first.

    Args:
        shards: where they are.
        run: only those of this run.
    """
    stored: list[StoredLetter] = []
    for connection in shards.connections:
        async for entry, fields in _entries(connection, connection.keys.dead):
            letter = _read(connection, entry, fields)
            if letter is not None and run in (None, letter.run):
                stored.append(StoredLetter(connection, entry, letter))
    return sorted(stored, key=lambda one: one.letter.at)


async def _entries(connection: Connection, stream: str) -> AsyncIterator[tuple[bytes, list[bytes]]]:
    first = "-"
    while True:
        page = await connection.send("XRANGE", stream, first, "+", "COUNT", PAGE)
        for entry, fields in page:
            yield entry, fields
        if len(page) < PAGE:
            return
        first = f"({page[-1][0].decode()}"


def _read(connection: Connection, entry: bytes, fields: list[bytes]) -> DeadLetter | None:
    """Decode an entry, or report one that holds no letter: every client that may write to Redis may write there."""
    try:
        letter = _decoder.decode(fields[1])
        if len(letter.mail) < 2:
            raise msgspec.ValidationError("there is no mail in it")
        _ = letter.call
        if letter.task:
            letter.decode_task()
        if letter.config:
            msgspec.json.decode(letter.config, type=RunConfig)
    except UNREADABLE as error:
        where = f"entry {entry.decode()} in {connection.keys.dead}"
        log.warning("%s is no dead letter: %s; it is left out", where, error)
        return None
    return letter


async def find_letter(shards: Shards, id_: str) -> StoredLetter:
    """Return a letter by its id; if a run took the name of one that was removed, the newest of that id.

    Args:
        shards: where it is.
        id_: the letter's.

    Raises:
        UnknownName: there is none.
    """
    for stored in reversed(await list_letters(shards)):
        if stored.letter.id == id_:
            return stored
    raise UnknownName(f"no dead letter {id_!r}; `gymq dead list` lists them")


async def rollout_messages(stored: StoredLetter) -> list[bytes]:
    """Return the messages of a letter's rollout, each as JSON; none if its consumers have read the rollout and it is gone."""
    connection, letter = stored.connection, stored.letter
    messages: list[bytes] = await connection.send("LRANGE", connection.keys.messages(letter.rollout), 0, -1)
    if messages:
        return messages
    async for _, fields in _entries(connection, connection.keys.results(letter.run)):
        if fields[1] == place(letter.rollout).encode() and rollout_of_entry(fields, letter.run):
            with suppress(*UNREADABLE):
                return [encode_message(message) for message in _record_decoder.decode(fields[7]).messages]
    return []


async def replay_letter(shards: Shards, id_: str, name: str | None = None) -> tuple[str, bool]:
    """Enqueue a letter's task again, as a row of another run: the rollout that was delivered stays as it is.

    Args:
        shards: where it is.
        id_: the letter's.
        name: the run's, made if there is none; None: that of the letter's run and `-replay`.

    Returns:
        The run's name, and whether the task was enqueued; False: it was before.

    Raises:
        UnknownName: there is no such letter, or its environment is not installed.
        UsageError: the letter cannot be replayed, or the run is another one.
        RunClosed: the run is done or cancelled.
    """
    letter = (await find_letter(shards, id_)).letter
    name = name or f"{letter.run}-replay"
    if name == letter.run:
        raise UsageError(f"run {name!r} is the letter's own, whose rollout has ended; give the replay another name")
    if not letter.task or not letter.config:
        raise UsageError(f"dead letter {id_!r} cannot be replayed: its run was removed before it was written")
    config = msgspec.json.decode(letter.config, type=RunConfig)
    if not await shards.create(msgspec.structs.replace(config, name=name, samples=1, created=0.0)):
        await shards.reopen(name)
    written = await TaskLedger(shards.connections, name).write(f"dead:{id_}", [letter.decode_task()], wait=False)
    await shards.close_run(name)
    return name, bool(written)


async def drop_letters(stored: list[StoredLetter]) -> int:
    """Forget letters; return how many there were."""
    return sum([await one.connection.send("XDEL", one.connection.keys.dead, one.entry) for one in stored])
