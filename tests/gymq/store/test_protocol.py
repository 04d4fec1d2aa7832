"""The protocol as a whole: whatever is lost, doubled, delayed or killed, every rollout ends once and nothing is forgotten.

Hypothesis plays producers, agents, resource workers, judges, zombies, consumers and operators at random against the real
scripts; `tests/support/protocol` has the model. `docs/architecture.md`, "How the protocol is checked", says which rule
stands for what.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis

from gymq.runtime.mailbox import STRIKES
from gymq.store import scripts
from gymq.store.connection import Outage, ServerFull
from tests.support.protocol import steps, truth
from tests.support.protocol.operators import MANY, PICK, SAMPLES, Operators
from tests.support.protocol.outages import Outages
from tests.support.protocol.worker import BOXES, NUMBERS, QUARANTINES, Worker
from tests.support.protocol.world import LIVENESS, REFUSALS, World
from tests.support.redis_server import leaked_keys
from tests.support.shard import keys
from tests.support.tiers import examples

WORKERS = st.sampled_from(NUMBERS)

#: What happens in a storm, and how often: mostly what brings rollouts on.
STORM = {
    "take": 30,
    "work": 40,
    "admit": 8,
    "enqueue": 2,
    "wake": 4,
    "decide": 8,
    "drain": 3,
    "leave": 2,
    "lapse": 3,
    "zombie": 5,
    "judge": 6,
    "plague": 1,
    "cancel_some": 2,
    "consume": 12,
    "remember": 8,
    "roll_back": 8,
    "refuse": 3,
    "remove": 3,
}


class Protocol(Operators, Outages):
    """Drives the world; `url` is set by the test."""

    url = ""

    @initialize(seed=st.integers(0, 1 << 32))
    def create(self, seed: int) -> None:
        """Begin in the middle of things."""
        self.world = World(self.url, SAMPLES)
        for name in SAMPLES:
            self.world.declare(name, "sink")
            self.enqueue(name, 2, MANY)
        self.admit(5)
        self.storm(seed, 30)

    # Workers. What they do may be lost on the way back: then they do it again.

    @rule(number=WORKERS, most=st.integers(1, 4), lost=st.booleans())
    def take(self, number: int, most: int, lost: bool) -> None:
        self.world.take(self.world.workers[number], most, lost)

    @precondition(lambda self: self.busy)
    @rule(who=PICK, first=PICK, most=st.integers(1, 3), twice=st.booleans(), lost=st.booleans())
    def work(self, who: int, first: int, most: int, twice: bool = False, lost: bool = False) -> None:
        """Commit steps or reply to calls: any of those that are held, not in order."""
        worker = self.busy[who % len(self.busy)]
        steps.act(self.world, worker, steps.batch_of(worker, first, most), twice, lost)

    @property
    def busy(self) -> list[Worker]:
        return [worker for worker in self.world.workers if worker.held]

    @precondition(lambda self: self.busy)
    @rule(who=PICK)
    def decide(self, who: int) -> None:
        """Decide now what is sent later: when the rollout has gone on meanwhile, that is stale or a conflict."""
        worker = self.busy[who % len(self.busy)]
        for mail in worker.held:
            steps.decide(self.world, worker, mail)

    @rule(number=st.sampled_from([1, 3, 5]))
    def begin_once(self, number: int) -> None:
        """Begin calls that must not be run twice."""
        history = self.world.history
        for worker in (self.world.workers[number], *[one for one in self.world.zombies if one.number == number]):
            for mail in worker.held:
                rid, step, n, _ = mail.fields[1].decode().split()
                pending = self.world.redis.hexists(keys.rollout(rid), f"c{step}.{n}")
                owner = history.begun.setdefault((rid, int(step), int(n)), worker.name) if pending else ""
                begun = self.world.script(scripts.begin_once(rid, int(step), int(n), worker.name))
                assert begun == (-1 if not pending else int(owner == worker.name))

    @rule(number=st.sampled_from([1, 3, 5]))
    def cut_off(self, number: int) -> None:
        """Acknowledge calls that are not wanted any more."""
        worker = self.world.workers[number]
        calls = [mail.fields[1].decode().split() for mail in worker.held]
        wanted = self.world.script(
            scripts.pending_calls([scripts.CallKey(rid, int(step), int(n)) for rid, step, n, _ in calls])
        )
        for mail, (rid, step, n, _), yes in zip(list(worker.held), calls, wanted, strict=True):
            if yes:
                assert (rid, int(step), int(n)) not in self.world.history.answered
            else:
                entry = scripts.ReplyEntry(rid, int(step), int(n), None, mail.stream, mail.id, "")
                assert self.world.script(scripts.reply([entry])) == [scripts.ReplyOutcome.STALE]
                worker.release(mail)

    @rule()
    def wake(self) -> None:
        """Two sweeps look for what is due."""
        due = self.world.redis.zcount(keys.due, "-inf", steps.SWEEP)
        assert self.world.script(scripts.wake(100, 0, steps.SWEEP)) == due
        assert self.world.redis.zcard(keys.due) <= sum(len(run.live) for run in self.world.history.runs.values())

    @precondition(lambda self: self.busy)
    @rule(who=PICK, which=PICK, twice=st.booleans(), zombie=st.booleans())
    def put_aside(self, who: int, which: int, twice: bool, zombie: bool) -> None:
        """A worker is too old for some of its mail."""
        busy = [worker for worker in self.world.zombies if worker.held] if zombie else self.busy
        if busy:
            worker = busy[who % len(busy)]
            self.world.park(worker, worker.held[which % len(worker.held)], twice)

    @rule(schema=st.integers(1, 2))
    def take_up(self, schema: int) -> None:
        self.world.unpark(schema)

    @rule(most=st.integers(1, 3))
    def go_on(self, most: int) -> None:
        """Everybody does some work."""
        for worker in self.world.workers:
            self.world.take(worker, most)
            while worker.held:
                held = len(worker.held)
                steps.act(self.world, worker, steps.batch_of(worker, 0, most))
                if len(worker.held) == held:
                    break

    # Death.

    @rule(number=WORKERS)
    def crash(self, number: int) -> None:
        self.world.lapse(number, dies=True)

    @rule(number=WORKERS)
    def lapse(self, number: int) -> None:
        """A worker's key lapses; it does not know, and goes on under its name for a while."""
        self.world.lapse(number, dies=False)

    @rule(number=st.sampled_from([1, 3]), most=st.integers(1, 3), finish=st.booleans(), zombie=st.booleans())
    def drain(self, number: int, most: int, finish: bool, zombie: bool) -> None:
        """A worker that serves calls closes its private mailbox; it goes on with what it holds."""
        self.admit(2)
        self.world.take(self.world.workers[0], 4)
        if self.world.workers[0].held:
            steps.act(self.world, self.world.workers[0], steps.batch_of(self.world.workers[0], 0, 4))
        self.world.take(self.world.workers[number], 1)
        zombies = [one for one in self.world.zombies if one.private]
        worker = zombies[0] if zombie and zombies else self.world.workers[number]
        moved = self.world.shut(worker, most)
        while finish and moved == most:
            moved = self.world.shut(worker, most)
        worker.drains = worker.drains or moved < most

    @rule(number=WORKERS, most=st.integers(1, 3), finish=st.booleans(), broken=st.booleans())
    def leave(self, number: int, most: int, finish: bool, broken: bool) -> None:
        """A worker drains, or a defect ends it; it hands back what it holds, and may die over that."""
        self.take(number, 3, False)
        worker = self.world.workers[number]
        reason = scripts.HandBackReason.DEFECT if broken else scripts.HandBackReason.LEAVING
        moved = self.world.hand_back(worker.name, most, reason)
        while finish and moved == most:
            moved = self.world.hand_back(worker.name, most, reason)
        self.world.lapse(number, dies=True)

    @precondition(lambda self: self.world.zombies)
    @rule(which=PICK)
    def come_back(self, which: int) -> None:
        """A worker that lapsed renews its key: it goes on, if nobody has declared it dead, or drops everything."""
        worker = self.world.zombies.pop(which % len(self.world.zombies))
        info = self.world.redis.hget(keys.workers, worker.name)
        alive = info is not None and not info.startswith(b"dead")
        assert self.world.script(scripts.renew_worker(worker.name, round(LIVENESS * 1000), worker.private)) == alive
        assert self.world.redis.exists(keys.alive(worker.name)) == alive
        if alive:
            other = self.world.workers[worker.number]  # who took its place, and leaves
            self.world.hand_back(other.name, 100, scripts.HandBackReason.LEAVING)
            self.world.workers[worker.number] = worker

    @rule(kind=st.integers(0, 1), most=st.integers(1, 4))
    def plague(self, kind: int, most: int) -> None:
        """Some mail kills whoever takes it, until it is to be buried."""
        for number in (kind, kind, *[QUARANTINES + kind] * STRIKES):
            self.take(number, most, False)
            self.crash(number)
            self.judge(2, True)

    @rule(kind=st.integers(0, 1), most=st.integers(1, 4))
    def old_quarantine(self, kind: int, most: int) -> None:
        """Suspects are put aside by a quarantine that is too old for them, and taken up."""
        for number in (kind, kind):
            self.take(number, most, False)
            self.crash(number)
            self.judge(2, True)
        worker = self.world.workers[QUARANTINES + kind]
        self.world.take(worker, most)
        for mail in list(worker.held):
            self.world.park(worker, mail, False)
        self.take_up(2)
        self.go_on(1)

    @rule(number=WORKERS, most=st.integers(1, 2))
    def return_too_late(self, number: int, most: int) -> None:
        """A worker renews its key while its mail is being handed back."""
        self.take(number, 3, False)
        self.lapse(number)
        self.world.hand_back(self.world.zombies[-1].name, most)
        self.come_back(-1)

    @precondition(lambda self: self.world.zombies)
    @rule(which=PICK, first=PICK, takes=st.booleans())
    def zombie(self, which: int, first: int, takes: bool) -> None:
        worker = self.world.zombies[which % len(self.world.zombies)]
        if takes:
            self.world.take(worker, 2)
        if worker.held:
            steps.act(self.world, worker, steps.batch_of(worker, first, 2))

    @rule(most=st.integers(1, 3), finish=st.booleans(), outage=st.booleans())
    def judge(self, most: int, finish: bool, outage: bool = False) -> None:
        """Hand back what the dead hold: all of it, or only the first batch; perhaps dead since an outage."""
        self.world.judge(most, finish, scripts.HandBackReason.OUTAGE if outage else scripts.HandBackReason.DEAD)

    @precondition(lambda self: self.busy)
    @rule(kind=st.sampled_from(sorted(REFUSALS)), who=PICK, first=PICK)
    def refuse(self, kind: str, who: int, first: int) -> None:
        """Redis refuses what writes; all is tried, none of it happens in part, and it is tried again later."""
        worker, other = self.busy[who % len(self.busy)], self.world.workers[who % len(self.world.workers)]
        with self.world.refusing(kind):
            for attempt in (
                lambda: steps.act(self.world, worker, steps.batch_of(worker, first, 3)),
                lambda: self.world.take(other, 2),
                lambda: self.world.hand_back(other.name, 2, scripts.HandBackReason.DEAD),
                lambda: self.admit(2),
                self.wake,
            ):
                with suppress(Outage, ServerFull):
                    attempt()
                truth.check(self.world)

    @rule(seed=st.integers(0, 1 << 32), moves=st.integers(20, 60))
    def storm(self, seed: int, moves: int) -> None:
        """Many of the above in a row: Hypothesis alone seldom plays a rollout to its end."""
        random = Random(seed)
        for move in random.choices(list(STORM), list(STORM.values()), k=moves):
            number, pick, name = random.choice(NUMBERS), random.randrange(1000), random.choice(sorted(SAMPLES))
            maybe, seldom = random.random() < 0.5, random.random() < 0.2
            match move:
                case "take":
                    self.world.take(self.world.workers[number], 2, seldom)
                case "work" if self.busy:
                    self.work(pick, random.randrange(4), random.randint(1, 3), seldom, random.random() < 0.2)
                case "admit":
                    self.admit(2)
                case "enqueue":
                    self.enqueue(name, 1, MANY)
                case "wake":
                    self.wake()
                case "decide" if self.busy:
                    self.decide(pick)
                case "drain":
                    self.drain(1 + number % 2 * 2, 2, maybe, seldom)
                case "leave":
                    self.leave(number, 2, maybe, seldom)
                case "lapse":
                    self.lapse(number)
                case "zombie" if self.world.zombies:
                    self.zombie(pick, random.randrange(4), maybe)
                case "judge":
                    self.judge(2, maybe)
                case "plague":
                    self.plague(number % 2, 2)
                case "cancel_some":
                    self.cancel_some(name, [(random.randrange(4), random.choice([None, 0]))])
                case "consume" if self.world.readers:
                    self.consume(pick, 3, seldom, random.randrange(4))
                case "remember":
                    self.remember()
                case "roll_back" if self.world.can_go_back:
                    self.roll_back(maybe, pick)
                case "refuse" if self.busy:
                    self.refuse(random.choice(sorted(REFUSALS)), number, pick)
                case "remove":
                    self.remove(name, random.randint(1, 2), seldom)
            truth.check(self.world)

    # What must be true at any time, and at the end.

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        if hasattr(self, "world"):
            truth.check(self.world)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.finish()
            finally:
                self.world.close()

    def finish(self) -> None:
        """All die; others come and do what is left; then everything must be as if nothing had happened."""
        world = self.world
        world.zombies = []
        for number in NUMBERS:
            self.crash(number)
        self.judge(2, True)
        for name in (None, *SAMPLES):
            self.pause(name, False)
        for name in SAMPLES:
            self.close_run(name, False)
        world.unpark(2)
        rounds = 0
        while any(run.live or (run.state == "closed" and run.cursor < run.total) for run in world.history.runs.values()) or any(
            world.entries(box) for box in BOXES
        ):
            rounds += 1
            assert rounds < 200, "this never ends"
            self.admit(4)
            if rounds % 3 == 0 and any(run.live for run in world.history.runs.values()):
                self.wake()
            self.go_on(10)
        truth.check(world)
        for run in world.history.runs.values():
            assert run.state in ("cancelled", "done") or len(run.ended) == run.total
            # One that was removed may be there again after a roll-back, and nobody reads.
            for consumer in {"sink", *run.consumers}:
                world.declare(run.name, consumer)
        for reader in world.readers.values():
            world.recall(reader)
            world.read(reader, 1000)
            world.acknowledge(reader, list(reader.held))
            consumed = world.consumed(reader)
            assert consumed is not None and consumed.due == consumed.acked <= reader.seen
        assert all(run.state == "done" for run in world.history.runs.values())
        buried = [fields[b"b"] for _, fields in world.redis.xrange(keys.dead)]
        assert len(buried) == len(set(buried))
        self.admit(1)
        with Redis.from_url(self.url) as client:
            assert leaked_keys(client, (keys.alive("*"),)) == []


#: Nothing is shrunk in the suite: that would take minutes.
OPTIONS = settings(
    max_examples=examples(12),
    stateful_step_count=25,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def protocol(redis_url, monkeypatch):
    monkeypatch.setattr("gymq.runtime.membership.time", Protocol.clock)
    Protocol.url = redis_url
    return Protocol


def test_every_rollout_ends_once_whatever_is_lost_doubled_delayed_or_killed(protocol):
    run_state_machine_as_test(protocol, settings=OPTIONS)


def test_the_documentation_says_what_each_move_stands_for():
    root = Path(__file__).parents[3]
    sources = [Path(__file__), *(root / "tests" / "support" / "protocol").glob("*.py")]
    moves = {name for path in sources for name in re.findall(r"@rule\(.*\)\n    def (\w+)", path.read_text())}
    section = (root / "docs" / "architecture.md").read_text().split("## How the protocol is checked")[1].split("\n## ")[0]
    assert {"take", "roll_back", "consume"} < moves
    assert moves - {"storm"} <= set(re.findall(r"`(\w+)`", section))  # a storm is many of the others
