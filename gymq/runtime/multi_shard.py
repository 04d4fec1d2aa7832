"""The actors of one process: one for each shard. If one's shard is away, the others go on."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from gymq.aio import cancel_and_wait
from gymq.errors import ServerUnreachable
from gymq.observe.metrics import WorkerGauges
from gymq.runtime.actor import Actor
from gymq.runtime.worker_host import EVENT_LIMIT, Event, HostedActor, RoleOptions
from gymq.settings import Settings
from gymq.store.sharded import Shards
from gymq.store.topology import parse

#: Seconds in which the other actors hand back what they hold when one has failed.
HAND_BACK_LIMIT = 5.0


class MultiShardActor:
    """Several actors as one `HostedActor`.

    Args:
        role: their class.
        settings: where the shards are.
        options: the options of the role's command line.
    """

    def __init__(self, role: type[Actor], settings: Settings, options: RoleOptions) -> None:
        shards = range(len(parse(settings.redis_url)))
        self._settings = settings
        self._draining = False
        self._events: deque[Event] = deque(maxlen=EVENT_LIMIT)
        self._actors = role.on_shards([settings.at(shard) for shard in shards], options)

    @property
    def events(self) -> deque[Event]:
        """The events of all of them that wait to be sent."""
        for actor in self._actors:
            while actor.events:
                self._events.append(actor.events.popleft())
        return self._events

    async def main(self) -> None:
        """Live until all are drained or stopped; an exception of one means that the process must end.

        Raises:
            ServerUnreachable: no shard can be reached, or one is away when the actors are to end.
        """
        await self._reach()
        lives = [asyncio.create_task(actor.main()) for actor in self._actors]
        try:
            await asyncio.gather(*lives)
        except Exception as error:
            # What the others hold is not to blame; while they drain, a shard that is away is no reason to hurry.
            hurry = not (isinstance(error, ServerUnreachable) and self._draining)
            if hurry:
                self.stop()
            await asyncio.wait(lives, timeout=HAND_BACK_LIMIT if hurry else None)
            raise
        finally:
            await cancel_and_wait(lives)

    async def _reach(self) -> None:
        connections = Shards(self._settings, "gymq-check").connections
        results = await asyncio.gather(*(connection.connect() for connection in connections), return_exceptions=True)
        for connection in connections:
            await connection.close()
        failures = [failure for failure in results if failure is not None]
        if len(failures) == len(connections):
            raise failures[0]

    def drain(self) -> None:
        """Take no more mail; `main` returns when what is held is finished or handed back."""
        self._draining = True
        for actor in self._actors:
            actor.drain()

    def stop(self) -> None:
        """Hand back what is held, now."""
        for actor in self._actors:
            actor.stop()

    def wake(self) -> None:
        """Sweep now."""
        for actor in self._actors:
            actor.wake()

    def stats(self) -> dict[str, Any]:
        """Return the sums of the actors' numbers, and the names of all."""
        merged: dict[str, Any] = {}
        for actor in self._actors:
            for key, value in actor.stats().items():
                if isinstance(value, int) and not isinstance(value, bool):
                    merged[key] = merged.get(key, 0) + value
                elif key == "worker" and key in merged:
                    merged[key] += f" {value}"
                else:
                    merged[key] = value
        return merged

    def gauges(self) -> WorkerGauges:
        """Return the sums over the actors; the backend is one for all of them."""
        first, *others = (actor.gauges() for actor in self._actors)
        for other in others:
            first.held += other.held
            first.capacity += other.capacity
            first.taking |= other.taking
        return first


def host_role(role: type[Actor], settings: Settings, options: RoleOptions) -> HostedActor:
    """Make what a process of a role runs: the actor, or one for each of several shards.

    Args:
        role: the class.
        settings: where the shards are.
        options: the options of the role's command line.

    Raises:
        GymqError: the options make no sense.
    """
    return role(settings, options) if len(parse(settings.redis_url)) == 1 else MultiShardActor(role, settings, options)
