"""A role in a thread of this process, for what no other process can import: a class of a notebook's cell, say.

It is a worker like any other: it stands in the registry, takes mail, and its death is noticed. Its process is the program's
own, so that a call which kills its process kills the program; what such calls had in hand is tried alone when the
run goes on, as everywhere (`gymq.runtime.quarantine`), but in this process again: no other one could run it.
"""

from __future__ import annotations

import asyncio
import threading
import traceback

from gymq import plugins
from gymq.aio import cancel_and_wait
from gymq.errors import GymqError
from gymq.runtime.actor import Actor
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings
from gymq.store.topology import parse

#: Seconds that the thread may take to end: calls in flight get 25 s to end, then what is held is handed back.
DRAIN_LIMIT = 40.0


class RoleThread:
    """The actors of one role in a thread of this process.

    Args:
        settings: where Redis is.
        role: the role's name.
        options: its options.

    Raises:
        GymqError: the options make no sense.
    """

    def __init__(self, settings: Settings, role: str, options: RoleOptions) -> None:
        self._name = role
        kind: type[Actor] = plugins.load(plugins.ROLES, role)
        shards = [settings.at(shard) for shard in range(len(parse(settings.redis_url)))]
        actors = kind.on_shards(shards, options)
        for actor in actors:
            actor.quarantines = None  # another process, which could not import what is served here
        self._actors = [*actors, *(kind(shard, options, suspects_only=True) for shard in shards)]
        self._failure: BaseException | None = None
        # Its end is awaited in `drain`, and no longer.
        self._thread = threading.Thread(target=self._live, name=f"gymq-{role}", daemon=True)

    def start(self) -> None:
        """Take mail from now on."""
        self._thread.start()

    def check(self) -> None:
        """Raise the error that has ended the role, if one has.

        Raises:
            GymqError: it ended.
        """
        if isinstance(self._failure, GymqError):
            raise self._failure
        if self._failure is not None:
            raise GymqError(f"the {self._name} role ended: {type(self._failure).__name__}: {self._failure}") from self._failure

    def drain(self) -> None:
        """Take no more mail, finish what is held, hand back the rest, and wait for the end."""
        for actor in self._actors:
            actor.drain()
        if self._thread.ident is not None:
            self._thread.join(DRAIN_LIMIT)

    def stop(self) -> None:
        """Hand back what is held, now; any thread may call it."""
        for actor in self._actors:
            actor.stop()

    def _live(self) -> None:
        try:
            asyncio.run(self._lives())
        except GymqError as error:
            self._failure = error
        except BaseException as error:
            traceback.print_exc()
            self._failure = error

    async def _lives(self) -> None:
        lives = [asyncio.create_task(actor.main()) for actor in self._actors]
        try:
            await asyncio.gather(*lives)
        finally:
            for actor in self._actors:
                actor.stop()
            await asyncio.wait(lives, timeout=DRAIN_LIMIT / 2)
            await cancel_and_wait(lives)
