"""Moves of the machine that Redis makes: it goes away, and comes back, perhaps with less than it had confirmed."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from gymq.loop_clock import LoopClock
from gymq.runtime.mailbox import Mail
from gymq.runtime.membership import Membership
from gymq.store import scripts
from gymq.store.worker_registry import WorkerEntry
from tests.support.protocol import steps
from tests.support.protocol.worker import Worker
from tests.support.protocol.world import LIVENESS, World
from tests.support.shard import keys


class Clock:
    """Time as all processes of the model measure it."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


class Outages(RuleBasedStateMachine):
    """Outages and roll-backs; `gymq.runtime.membership` is to go by `clock`."""

    world: World
    clock = Clock()

    @rule(seed=st.integers(0, 1000), away=st.sampled_from([0.0, 10.0, 10_000.0]), stall=st.sampled_from([0.0, 1.5, 1_000.0]))
    def outage(self, seed: int, away: float, stall: float) -> None:
        """All keys lapse while Redis is away, or while all processes stand still; then all come back, each when it notices, and
        look after the dead; and may stand still once more between two looks."""
        random = Random(seed)
        world, clock = self.world, self.clock
        names = {worker.name.encode() for worker in world.workers}
        registered = {name for name, info in world.redis.hgetall(keys.workers).items() if not info.startswith(b"dead")}
        lives = [self.life(worker) for worker in world.workers]
        for key in world.redis.keys(keys.alive("*")):
            world.redis.delete(key)
        clock.seconds += (away or 10.0) * LIVENESS
        back = {life: clock.seconds + random.uniform(0.0, LIVENESS / (3 if away else 9)) for life in lives}
        until = clock.seconds + 2.5 * LIVENESS
        stalls = [clock.seconds + random.uniform(0.5 * LIVENESS, 2.0 * LIVENESS)] if stall else []
        known: set[Membership] = set()
        judge = random.choice(lives)
        while clock.seconds < until:
            clock.seconds += LIVENESS / 6
            for life in lives:
                world.runner.run(self.tick(life))
            if stalls and clock.seconds > stalls[0]:
                stalls.clear()
                for life in lives:
                    world.runner.run(life.sweep())
                for key in world.redis.keys(keys.alive("*")):
                    world.redis.delete(key)
                for life in random.sample(lives, len(lives)):
                    # A judge wakes, looks, stands still, and looks again, before the others have renewed.
                    for _ in range(1 + (life is judge)):
                        clock.seconds += stall * LIVENESS
                        until += stall * LIVENESS
                        world.runner.run(life.sweep())
            for life in lives:
                if clock.seconds < back[life]:
                    continue
                if life not in known:
                    known.add(life)
                    if away:
                        world.runner.run(life.recover())
                    # It judges at once, before anybody has renewed.
                    world.runner.run(life.sweep())
                assert world.runner.run(life.renew()) == (life.worker.encode() in registered)
            for life in random.sample(lives, 2):
                if life in known:
                    world.runner.run(life.sweep())
        there = world.redis.hgetall(keys.workers)
        assert not any(info.startswith(b"dead") for info in there.values())
        assert set(there) == registered & names, "who lives was declared dead, or who is dead was not"

    def life(self, worker: Worker) -> Membership:
        """A worker's standing in the registry, since long ago, with its loop's clock."""
        world, clock = self.world, LoopClock(LIVENESS / 12, self.clock.monotonic)
        entry = WorkerEntry("resource", "h", 1, [worker.box])
        life = Membership(world.settings, world.connection, entry, worker.private, clock)
        life.worker = worker.name
        life._connected = -10 * LIVENESS
        return life

    async def tick(self, life: Membership) -> None:
        """The loop of a worker turns."""
        life._now()

    @rule()
    def remember(self) -> None:
        """What Redis would be after the loss of all that follows."""
        self.world.remember()

    @precondition(lambda self: self.world.can_go_back)
    @rule(late=st.booleans(), seed=st.integers(0, 1000))
    def roll_back(self, late: bool, seed: int) -> None:
        """Redis loses what it had confirmed.

        What workers were sending they send again, as they had decided it. Then they drop what they hold and read their mail
        again, while others read theirs.
        """
        world, random = self.world, Random(seed)
        for worker in world.workers:
            world.take(worker, random.randint(0, 2))
        under_way = {
            worker: steps.batch_of(worker, seed, random.randint(0, 3))
            for worker in (*world.workers, *world.zombies)
            if worker.held
        }
        for worker, mails in under_way.items():
            for mail in mails:
                steps.decide(world, worker, mail)
        world.go_back(resend=random.random() < 0.5)
        world.zombies = [] if not late else world.zombies
        for worker in world.zombies:
            self.resend(worker, under_way)
        numbered = list(enumerate(world.workers))
        random.shuffle(numbered)
        for number, worker in numbered:
            self.resend(worker, under_way)
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
            if random.random() < 0.5:
                world.take(world.workers[number], 2)

    def resend(self, worker: Worker, under_way: dict[Worker, list[Mail]]) -> None:
        """What a worker does first when it connects again: it sends once more what it was sending."""
        if under_way.get(worker):
            steps.act(self.world, worker, under_way[worker], late=True)
        self.notice(worker)

    def notice(self, worker: Worker) -> None:
        """What a worker does when it connects again and Redis may have gone back."""
        worker.forget()
        worker.drains = False  # its private mailbox may be open again; then it is emptied when it leaves
