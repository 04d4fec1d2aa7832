"""Dead letters: mail that killed its process three times though it held nothing else. `gymq.ops.dead_letters` lists them.

A letter holds all that is needed to look into it and to try again when the run is gone: the mail, the task, the run's
configuration. Letters stay until they are dropped, or until `ttl` seconds have passed since the newest of them.
"""

from __future__ import annotations

import time

import msgspec

from gymq.errors import CallError
from gymq.runtime.mailbox import STRIKES, Mail
from gymq.store import scripts
from gymq.store.connection import Connection, Outage
from gymq.store.runs import RunConfig
from gymq.store.scripts import LoadRequest
from gymq.wire.calls import Call, decode_call
from gymq.wire.ids import RolloutId, place
from gymq.wire.task import Task, decode_task


class DeadLetter(msgspec.Struct, array_like=True):
    """Mail that was given up, with what is needed to look into it when its run is gone.

    Args:
        id: the call's id; of a step of an agent, `rollout:step`.
        rollout: the rollout's address.
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
        return RolloutId.parse(place(self.rollout)).run

    @property
    def call(self) -> Call | None:
        """The call, if it is one."""
        return decode_call(self.mail[1]) if self.mail[0][:1] == b"c" else None

    def decode_task(self) -> Task:
        """Decode the task."""
        return decode_task(self.task)


_encoder = msgspec.msgpack.Encoder()


async def dead_letter_of_call(connection: Connection, mail: Mail, call: Call, role: str) -> tuple[CallError, bytes]:
    """Return the error that answers a call, and its encoded letter, which the reply script writes if the call is pending.

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
    """Return the error that ends a step's rollout, and its encoded letter, which the commit script writes.

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
    what = f"{letter.kind} of {letter.name}: its {letter.role} process died {STRIKES} times while it held nothing else"
    return CallError("poison", f"{what}; `gymq dead show {letter.id}` has more"), _encoder.encode(letter)
