"""Admission: rollouts of the ledger begin while their run has credits."""

from __future__ import annotations

from gymq.observe.events import Admitted, emit
from gymq.store import scripts
from gymq.store.connection import Connection

#: Rollouts that one script admits: as many as keep the server busy for a few milliseconds.
ADMIT = 128

#: Rollouts that one script passes over because a sink has them: as many as take no longer than that.
SKIP = 2000

#: Bytes up to which messages, a task or a state travel inside mail. Beyond that the callee loads them: a copy in a
#: mailbox costs memory and log twice.
INLINE = 4096


#: Bytes of finished rollouts, as Redis keeps them, beyond which a run waits for its consumers: rollouts with long
#: conversations are a megabyte each, and then their number bounds nothing.
BACKLOG_BYTES = 256 * 2**20

#: Milliseconds after which a rollout is looked at that has not begun: its mail may be lost. Mail that only waits that long is
#: doubled, and the second one finds the rollout begun.
BEGIN_MS = 60_000


async def admit(connection: Connection) -> int:
    """Start rollouts while their runs have credits, and return how many.

    Raises:
        Outage: the connection broke; some may have been started.
    """
    total = 0
    while True:
        done = await connection.run(scripts.admit(ADMIT, INLINE, SKIP, BACKLOG_BYTES, BEGIN_MS))
        total += done.admitted
        if done.admitted:
            emit(Admitted(done.admitted))
        if done.admitted < ADMIT and done.skipped < SKIP:
            return total
