"""Moves of the machine that Redis makes: it goes away, and comes back, perhaps with less than it had confirmed."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from gymq.runtime.membership import Membership
from gymq.store import scripts
from gymq.store.worker_registry import WorkerEntry
from tests.support.protocol.worker import Worker
from tests.support.protocol.world import LIVENESS, World
from tests.support.shard import keys


class Clock:
    """Time as judges see it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Outages(RuleBasedStateMachine):
    """Outages and roll-backs; `gymq.runtime.membership` is to go by `clock`."""

    world: World
    clock = Clock()

    @rule(seed=st.integers(0, 1000))
    def outage(self, seed: int) -> None:
        """All keys lapse while Redis is away; then all come back, each when it notices, and look after the dead."""
        random = Random(seed)
        world, clock = self.world, self.clock
        names = {worker.name.encode() for worker in world.workers}
        registered = {name for name, info in world.redis.hgetall(keys.workers).items() if not info.startswith(b"dead")}
        for key in world.redis.keys(keys.alive("*")):
            world.redis.delete(key)
        clock.now += 10 * LIVENESS
        back = clock.now
        lives: list[tuple[float, Membership]] = []
        for worker in world.workers:
            life = Membership(world.settings, world.connection, WorkerEntry("resource", "h", 1, [worker.box]), worker.private)
            life.worker = worker.name
            life._connected = 0.0
            lives.append((back + random.uniform(0.0, LIVENESS / 3), life))
        known: set[str] = set()
        while clock.now < back + 2.5 * LIVENESS:
            clock.now += LIVENESS / 6
            for since, life in lives:
                if clock.now < since:
                    continue
                if life.worker not in known:
                    known.add(life.worker)
                    world.runner.run(life.recover())
                    # It judges at once, before anybody has renewed.
                    world.runner.run(life.sweep())
                assert world.runner.run(life.renew()) == (life.worker.encode() in registered)
            for _, life in random.sample(lives, 2):
                if life.worker in known:
                    world.runner.run(life.sweep())
        there = world.redis.hgetall(keys.workers)
        assert not any(info.startswith(b"dead") for info in there.values())
        assert set(there) == registered & names, "who lives was declared dead, or who is dead was not"

    @rule()
    def remember(self) -> None:
        """What Redis would be after the loss of all that follows."""
        self.world.remember()

    @precondition(lambda self: self.world.can_go_back)
    @rule(late=st.booleans())
    def roll_back(self, late: bool) -> None:
        """Redis loses what it had confirmed. Workers drop what they hold and read their mail again."""
        world = self.world
        world.go_back()
        world.zombies = [] if not late else world.zombies
        for worker in world.zombies:
            self.notice(worker)
        for number, worker in enumerate(world.workers):
            self.notice(worker)
            info = world.redis.hget(keys.workers, worker.name)
            alive = info is not None and not info.startswith(b"dead")
            assert world.script(scripts.renew_worker(worker.name, round(LIVENESS * 1000), worker.private)) == alive
            if alive:
                known = {(one.stream, one.id) for one in worker.held}
                worker.held += [one for one in world.held(worker) if (one.stream, one.id) not in known]
            else:
                world.redis.delete(keys.alive(worker.name))
                world.workers[number] = world.born(number)
                if late:
                    world.zombies.append(worker)

    def notice(self, worker: Worker) -> None:
        """What a worker does when it connects again and Redis may have gone back."""
        worker.forget()
        worker.drains = False  # its private mailbox may be open again; then it is emptied when it leaves
