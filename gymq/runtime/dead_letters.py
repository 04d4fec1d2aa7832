"""Dead letters: mail that killed its process three times though nothing else was in it. Written, listed, replayed, dropped.

A letter holds all that is needed to look into it and to try again when the run is gone: the mail, the task, the run's
configuration. Letters stay until they are dropped, or until `ttl` seconds have passed since the newest of them.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from gymq.errors import UNREADABLE, CallError, UnknownName, UsageError
from gymq.runtime.mailbox import STRIKES, Mail
from gymq.store import scripts
from gymq.store.connection import Connection, Outage
from gymq.store.runs import RunConfig
from gymq.store.scripts import LoadRequest
from gymq.store.sharded import Shards
from gymq.store.task_ledger import TaskLedger
from gymq.wire.calls import Call, decode_call
from gymq.wire.ids import RolloutId
from gymq.wire.message import encode_message
from gymq.wire.record import RolloutRecord, narrow
from gymq.wire.rollout import rollout_of_entry
from gymq.wire.task import Task, decode_task

#: Entries that one command reads: a few milliseconds of the server's time.
PAGE = 500


class DeadLetter(msgspec.Struct, array_like=True):
    """A dead letter.

    Args:
        id: the call's id; of a step of an agent, `rollout:step`.
        rollout: the rollout's id.
        role: whose processes died.
        mailbox: where the mail was sent.
        kind: the call's kind; `act` is a step of an agent.
        name: the tool, the environment of a hook, the model's SPEC or the agent.
        mail: the mail's names and values in turn, as they were written.
        task: the encoded task; empty: it was gone.
        config: the run's configuration, JSON; empty: it was gone.
        deaths: how many workers died with it in hand.
        strikes: how many of them held nothing else.
        at: when it was given up, seconds since the epoch.
        worker: the last worker that died with it.
    """

    id: str
    rollout: str
    role: str
    mailbox: str
    kind: str
    name: str
    mail: list[bytes]
    task: bytes
    config: bytes
    deaths: int = 0
    strikes: int = 0
    at: float = 0.0
    worker: str = ""

    @property
    def run(self) -> str:
        """The run's name."""
        return RolloutId.parse(self.rollout).run

    @property
    def call(self) -> Call | None:
        """The call, if it is one."""
        return decode_call(self.mail[1]) if self.mail[0][:1] == b"c" else None

    def decode_task(self) -> Task:
        """The task."""
        return decode_task(self.task)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DeadLetter)

# Writing.


async def dead_letter_of_call(connection: Connection, mail: Mail, call: Call, role: str) -> tuple[CallError, bytes]:
    """A call's end: the error that answers it, and its encoded letter, which the reply script writes if it is pending.

    Args:
        connection: a connection.
        mail: the mail, with all its strikes.
        call: the call in it.
        role: whose processes died.
    """
    (loaded,) = await connection.insist(scripts.load_rollouts([LoadRequest(call.rollout, -1, call.run, call.row)]))
    while True:
        try:
            config = await connection.send("HGET", connection.keys.run(call.run), "config")
            break
        except Outage:
            await connection.reconnect()
    box = mail.stream.decode().removeprefix(connection.keys.mailbox("")).removesuffix(":alone")
    name = call.name or box.partition(":")[2]
    return _bury(
        DeadLetter(call.id, call.rollout, role, box, call.kind, name, mail.fields, loaded.task or b"", config or b""), mail
    )


def dead_letter_of_step(mail: Mail, version: int, task: bytes, config: RunConfig) -> tuple[CallError, bytes]:
    """A step's end: the error that ends its rollout, and its encoded letter, which the commit script writes.

    Args:
        mail: the mail, with all its strikes.
        version: the rollout's.
        task: its task, encoded.
        config: its run.
    """
    rid = mail.fields[1].decode()
    id_, encoded = f"{rid}:{version}", msgspec.json.encode(config)
    return _bury(DeadLetter(id_, rid, "agent", "agent", "act", config.agent, mail.fields, task, encoded), mail)


def _bury(letter: DeadLetter, mail: Mail) -> tuple[CallError, bytes]:
    letter.deaths, letter.strikes, letter.worker, letter.at = mail.attempt, mail.strikes, mail.victim, time.time()
    what = f"{letter.kind} of {letter.name}: its {letter.role} process died {STRIKES} times, alone"
    return CallError("poison", f"{what}; `gymq dead show {letter.id}` has more"), _encoder.encode(letter)


# Reading.


@dataclass
class Found:
    """A letter and the entry in which it stands."""

    connection: Connection
    entry: bytes
    letter: DeadLetter


async def letters(shards: Shards, name: str | None = None) -> list[Found]:
    """All dead letters, oldest first.

    Args:
        shards: where they are.
        name: only those of this run.
    """
    found: list[Found] = []
    for connection in shards.connections:
        first = "-"
        while True:
            entries = await connection.send("XRANGE", connection.keys.dead, first, "+", "COUNT", PAGE)
            found += [
                Found(connection, entry, letter) for entry, fields in entries if (letter := _read(connection, entry, fields))
            ]
            if len(entries) < PAGE:
                break
            first = f"({entries[-1][0].decode()}"
    return sorted((one for one in found if name is None or one.letter.run == name), key=lambda one: one.letter.at)


def _read(connection: Connection, entry: bytes, fields: list[bytes]) -> DeadLetter | None:
    """The letter in an entry; None: it is none, which is said: whoever may write to Redis may write there, too."""
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
        print(
            f"gymq: entry {entry.decode()} in {connection.keys.dead} is no dead letter: {error}; it is left out",
            file=sys.stderr,
        )
        return None
    return letter


async def find(shards: Shards, id_: str) -> Found:
    """A letter by its id; if a run took the name of one that was removed, the newest of that id.

    Raises:
        UnknownName: there is none.
    """
    for one in reversed(await letters(shards)):
        if one.letter.id == id_:
            return one
    raise UnknownName(f"no dead letter {id_!r}; `gymq dead list` lists them")


async def messages(found: Found) -> list[bytes]:
    """The rollout's messages, each as JSON, or nothing: they go with the rollout, and with what its consumers have read."""
    connection, letter = found.connection, found.letter
    there: list[bytes] = await connection.send("LRANGE", connection.keys.messages(letter.rollout), 0, -1)
    if there:
        return there
    first = "-"
    while True:
        entries = await connection.send("XRANGE", connection.keys.results(letter.run), first, "+", "COUNT", PAGE)
        for _, fields in entries:
            if fields[1] == letter.rollout.encode() and rollout_of_entry(fields, letter.run):
                with suppress(*UNREADABLE):
                    return [encode_message(message) for message in _record_decoder.decode(fields[7]).messages]
        if len(entries) < PAGE:
            return []
        first = f"({entries[-1][0].decode()}"


_record_decoder = msgspec.json.Decoder(narrow(RolloutRecord, "messages"))


# Doing something about it.


async def replay(shards: Shards, id_: str, name: str | None = None) -> tuple[str, bool]:
    """Enqueue a letter's task again, as a row of another run: what was delivered stays as it is.

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
    letter = (await find(shards, id_)).letter
    name = name or f"{letter.run}-replay"
    if name == letter.run:
        raise UsageError(f"run {name!r} is the letter's own, whose rollout has ended; give the replay another name")
    if not letter.task or not letter.config:
        raise UsageError(f"dead letter {id_!r} cannot be replayed: its run was removed before it was written")
    task = letter.decode_task()
    config = msgspec.json.decode(letter.config, type=RunConfig)
    if not await shards.create(msgspec.structs.replace(config, name=name, samples=1, created=0.0)):
        await shards.reopen(name)
    written = await TaskLedger(shards.connections, name).write(f"dead:{id_}", [task], wait=False)
    await shards.close_run(name)
    return name, bool(written)


async def drop(found: list[Found]) -> int:
    """Forget letters; returns how many there were."""
    gone = 0
    for one in found:
        gone += await one.connection.send("XDEL", one.connection.keys.dead, one.entry)
    return gone
