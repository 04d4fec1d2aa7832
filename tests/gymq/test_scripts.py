"""The protocol as a whole: whatever is lost, doubled, delayed or killed, every rollout ends once and nothing is forgotten.

Hypothesis plays agents, resource workers, judges and zombies at random against the real scripts. A rollout of this little
world has three steps: one call, then two beside each other, then the end.
"""

from __future__ import annotations

import asyncio
import json
from random import Random

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis

from gymq import mailbox, run
from gymq.batch import pack
from gymq.link import Link
from gymq.mailbox import STRIKES, Mail, Mailboxes
from gymq.run import RunConfig
from gymq.settings import Settings
from tests.support.redis_server import leaked_keys
from tests.support.shard import keys

SAMPLES = {"solo": 1, "pair": 2}
CALLS = [1, 2, 0]  # by version; none: the end
NUMBERS = range(6)
QUARANTINES = 4
WORKERS = st.integers(0, NUMBERS[-1])
PICK = st.integers(0, 1 << 16)
STORM = ["admit", "judge", "lapse", "lose", "read", "take", "take", "work", "work", "work", "zombie", "zombie"]


class Worker:
    """One incarnation of an agent (even numbers) or a resource worker; the last of each is its quarantine."""

    def __init__(self, number: int, life: int) -> None:
        self.box = "agent" if number % 2 == 0 else "resource:e"
        self.alone = number >= QUARANTINES
        self.name = f"{number}-{life}"
        self.held: list[Mail] = []


class Protocol(RuleBasedStateMachine):
    """Drives the scripts; `url` is set by the test."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.link = Link(Settings(redis_url=self.url), "protocol")
        self.runner.run(self.link.connect())
        self.send("FLUSHALL")
        for box in ("agent", "resource:e"):
            self.runner.run(Mailboxes([box], keys).create(self.link))
        self.lives = 0
        self.workers = [self.born(number) for number in NUMBERS]
        self.zombies: list[Worker] = []
        self.rows = dict.fromkeys(SAMPLES, 0)
        self.cancelled: set[str] = set()
        self.read: dict[bytes, int] = {}  # cancellations that were decided on a version, by their mail

    # Shorthands.

    def send(self, *command):
        return self.runner.run(self.link.send(*command))

    def script(self, name, *args):
        return self.runner.run(self.link.run(name, *args))

    def born(self, number: int) -> Worker:
        self.lives += 1
        worker = Worker(number, self.lives)
        self.send("HSET", keys.workers, worker.name, msgspec.json.encode({"mailboxes": [worker.box]}))
        self.send("SET", keys.alive(worker.name), 1, "PX", 3_600_000)
        return worker

    def streams(self, box: str) -> list[str]:
        return [keys.retry(box), keys.mailbox(box), keys.alone(box)]

    def reads(self, worker: Worker) -> list[str]:
        *ordinary, alone = self.streams(worker.box)
        return [alone] if worker.alone else ordinary

    def mail(self, box: str) -> list[dict[bytes, bytes]]:
        """All that lies in a mailbox, delivered or not."""
        entries = [fields for s in self.streams(box) for _, fields in self.send("XRANGE", s, "-", "+")]
        return [dict(zip(fields[::2], fields[1::2], strict=True)) for fields in entries]

    def results(self, name: str) -> list[dict]:
        return [json.loads(fields[7]) for _, fields in self.send("XRANGE", keys.results(name), "-", "+")]

    # The producer and the operator.

    @initialize()
    def create(self) -> None:
        for name, samples in SAMPLES.items():
            config = RunConfig(name, "e", "a", "m", samples=samples, concurrency=3, backlog=1000)
            self.runner.run(run.create(self.link, config))
            self.script("declare", name, "sink")
            self.enqueue(name, 2, True)
        self.admit(5)

    @rule(name=st.sampled_from(sorted(SAMPLES)), rows=st.integers(1, 3), again=st.booleans())
    def enqueue(self, name: str, rows: int, again: bool) -> None:
        tasks = [b"task"] * rows
        written = self.script("enqueue", name, self.rows[name], 1000, *tasks)
        if name in self.cancelled:
            assert written == -1
            return
        if again:
            assert self.script("enqueue", name, self.rows[name], 1000, *tasks) == 0
        assert written == rows
        self.rows[name] += rows

    @rule(most=st.integers(1, 4))
    def admit(self, most: int) -> None:
        self.script("admit", most, 4096, 100, 1 << 40)

    @precondition(lambda self: not self.cancelled)
    @rule(name=st.sampled_from(sorted(SAMPLES)))
    def cancel(self, name: str) -> None:
        self.script("cancel", name)
        self.cancelled.add(name)

    # Workers. What they do may be lost on the way back: then they do it again.

    @rule(number=WORKERS, most=st.integers(1, 4))
    def take(self, number: int, most: int) -> None:
        self.taken(self.workers[number], most)

    def taken(self, worker: Worker, most: int) -> None:
        reply = self.script("take", worker.name, most, *self.reads(worker))
        mail = mailbox._parse(reply)
        assert len(mail) <= most
        # Who has died at most once is no suspect, and what is one is read by nobody else.
        assert all((one.attempt >= 2) == worker.alone for one in mail)
        assert all(one.strikes <= max(one.attempt - 2, 0) for one in mail)
        worker.held += mail

    @rule(number=WORKERS, most=st.integers(1, 4))
    def take_and_lose_the_answer(self, number: int, most: int) -> None:
        worker = self.workers[number]
        self.script("take", worker.name, most, *self.reads(worker))
        worker.held = self.holds(worker)

    def holds(self, worker: Worker) -> list[Mail]:
        return self.runner.run(Mailboxes([worker.box], keys, worker.alone).held(self.link, worker.name))

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(who=PICK, which=PICK, twice=st.booleans(), lost=st.booleans())
    def work(self, who: int, which: int, twice: bool, lost: bool) -> None:
        busy = [worker for worker in self.workers if worker.held]
        self.worked(busy[who % len(busy)], which, twice, lost)

    def worked(self, worker: Worker, which: int, twice: bool = False, lost: bool = False) -> None:
        """Commit a step or reply to a call: any of those that are held, not in order."""
        if not worker.held:
            return
        mail = worker.held[which % len(worker.held)]
        outcome = self.step(mail) if worker.box == "agent" else self.reply(mail)
        if twice:
            again = self.step(mail) if worker.box == "agent" else self.reply(mail)
            assert outcome == 2 or again == 0
        if outcome == 2 and worker in self.workers:  # a zombie's mail may lie elsewhere by now
            assert (mail.stream, mail.id) in [(one.stream, one.id) for one in self.holds(worker)]
        if not lost and outcome != 2:
            worker.held.remove(mail)

    def step(self, mail: Mail) -> int:
        fields = dict(zip(mail.fields[::2], mail.fields[1::2], strict=True))
        rid, version, must = fields[b"r"].decode(), int(fields[b"v"]), b"x" in fields
        if must:
            version = self.read.pop(mail.id, self.version(mail))
        name, row, _ = rid.split(".")
        calls = 0 if must else CALLS[version]
        sends = [("resource:e", b"%s %d %d" % (rid.encode(), version + 1, n)) for n in range(calls)]
        status = "cancelled" if must else "completed"
        final = (
            [] if calls else [name, int(row), SAMPLES[name], status, msgspec.json.encode({"id": rid, "status": status})[:-1]]
        )
        turns = [] if must else [b"%d" % version]
        commit = [
            rid,
            version,
            mail.stream,
            mail.id,
            ["s", b"state"],
            turns,
            turns,
            sends,
            5,
            final,
            int(must),
            self.letter(mail),
        ]
        return self.script("commit", pack([commit]))[0]

    def letter(self, mail: Mail) -> list:
        """The letter of mail with three strikes; here its rollout goes on all the same."""
        name = mail.fields[1:4:2] if mail.fields[0] == b"r" else [mail.fields[1]]
        return [b" ".join(name), 100] if mail.strikes >= STRIKES and b"x" not in mail.fields[4::2] else []

    def version(self, mail: Mail) -> int:
        return int(self.send("HGET", keys.rollout(mail.fields[1].decode()), "v") or 0)

    def reply(self, mail: Mail) -> int:
        rid, step, n = mail.fields[1].split()
        return self.script("reply", pack([[rid, int(step), int(n), b"reply", mail.stream, mail.id, "", *self.letter(mail)]]))[0]

    @precondition(lambda self: self.cancelled)
    @rule()
    def read_ahead(self) -> None:
        """Decide cancellations now and commit them later: when the rollout has gone on, that is a conflict."""
        for mail in [mail for worker in self.workers for mail in worker.held]:
            if b"x" in mail.fields[4::2]:
                self.read[mail.id] = self.version(mail)

    @rule(most=st.integers(1, 3))
    def go_on(self, most: int) -> None:
        """Everybody does some work."""
        for worker in self.workers:
            self.taken(worker, most)
            for _ in range(most):
                self.worked(worker, 0)

    # Death.

    @rule(number=WORKERS)
    def crash(self, number: int) -> None:
        self.lapse(number)
        self.zombies.pop()

    @rule(number=WORKERS)
    def lapse(self, number: int) -> None:
        """A worker's key lapses; it does not know, and goes on under its name for a while."""
        worker = self.workers[number]
        self.send("DEL", keys.alive(worker.name))
        self.zombies.append(worker)
        self.workers[number] = self.born(number)

    @rule(kind=st.integers(0, 1), most=st.integers(1, 4))
    def plague(self, kind: int, most: int) -> None:
        """Some mail kills whoever takes it, until it is to be buried."""
        for number in (kind, kind, *[QUARANTINES + kind] * STRIKES):
            self.taken(self.workers[number], most)
            self.crash(number)
            self.judge(2, True)

    @precondition(lambda self: self.zombies)
    @rule(which=PICK, mail=PICK, takes=st.booleans())
    def zombie(self, which: int, mail: int, takes: bool) -> None:
        worker = self.zombies[which % len(self.zombies)]
        if takes:
            self.taken(worker, 2)
        self.worked(worker, mail)

    @rule(most=st.integers(1, 3), finish=st.booleans())
    def judge(self, most: int, finish: bool) -> None:
        """Hand back what the dead hold: all of it, or only the first batch."""
        alive = {worker.name for worker in self.workers}
        for name in [name.decode() for name in self.send("HKEYS", keys.workers)]:
            box = "agent" if int(name.split("-")[0]) % 2 == 0 else "resource:e"
            moved = self.script("handback", name, most, "0", box)
            assert (moved == -1) == (name in alive)
            while finish and moved == most:
                moved = self.script("handback", name, most, "0", box)
        for box in ("agent", "resource:e"):
            for orphan in self.script("orphans", box)[0]:
                assert orphan.decode() not in alive
                self.script("handback", orphan, 100, "0", box)

    @rule(seed=st.integers(0, 1 << 32))
    def storm(self, seed: int) -> None:
        """Many of the above in a row: Hypothesis alone seldom plays a rollout to its end."""
        random = Random(seed)
        for _ in range(30):
            number, pick = random.choice(NUMBERS), random.randrange(1000)
            match random.choice(
                ["admit", "take", "take", "work", "work", "work", "lose", "read", "lapse", "zombie", "zombie", "judge"]
            ):
                case "admit":
                    self.admit(2)
                case "take":
                    self.take(number, 2)
                case "work" if any(worker.held for worker in self.workers):
                    self.work(number, pick, pick % 3 == 0, pick % 5 == 0)
                case "lose":
                    self.take_and_lose_the_answer(number, 1)
                case "read":
                    self.read_ahead()
                case "lapse":
                    self.lapse(number)
                case "zombie" if self.zombies:
                    self.zombie(pick, pick, pick % 2 == 0)
                case "judge":
                    self.judge(2, pick % 2 == 0)
            self.every_rollout_ended_once_or_has_something_that_brings_it_on()

    # What must be true at any time.

    @invariant()
    def every_rollout_ended_once_or_has_something_that_brings_it_on(self) -> None:
        told = {(fields[b"r"], int(fields[b"v"])) for fields in self.mail("agent")}
        asked = {tuple(fields[b"c"].split()) for fields in self.mail("resource:e")}
        for name, samples in SAMPLES.items():
            cursor = int(self.send("HGET", keys.run(name), "cursor") or 0)
            admitted = {f"{name}.{i // samples}.{i % samples}" for i in range(cursor)}
            ended = [result["id"] for result in self.results(name)]
            live = {rid.decode() for rid in self.send("SMEMBERS", keys.live(name))}
            assert len(ended) == len(set(ended))
            assert live == admitted - set(ended)
            assert len(live) <= 3
            for rid in live:
                fields = self.send("HGETALL", keys.rollout(rid))
                pending = [field[1:].split(b".") for field in fields[::2] if field[:1] == b"c"]
                version = int(fields[fields.index(b"v") + 1])
                assert pending or (rid.encode(), version) in told, f"{rid} is forgotten"
                assert all((rid.encode(), step, n) in asked for step, n in pending), f"a call of {rid} is forgotten"

    def teardown(self) -> None:
        try:
            if hasattr(self, "workers"):
                self.finish()
        finally:
            self.runner.run(self.link.close())
            self.runner.close()

    def finish(self) -> None:
        """All die; others come and do what is left; then everything must be as if nothing had happened."""
        self.zombies = []
        for number in NUMBERS:
            self.crash(number)
        self.judge(2, True)
        for name in SAMPLES:
            self.script("close", name)
        rounds = 0
        while self.script("admit", 4, 4096, 100, 1 << 40)[0] or self.mail("agent") or self.mail("resource:e"):
            rounds += 1
            assert rounds < 300, "this never ends"
            for worker in self.workers:
                self.taken(worker, 10)
                for _ in list(worker.held):
                    self.worked(worker, 0)
        self.every_rollout_ended_once_or_has_something_that_brings_it_on()
        for name, samples in SAMPLES.items():
            found = self.results(name)
            assert name in self.cancelled or len(found) == self.rows[name] * samples
            for result in found:
                whole = [0, 1, 2]
                assert (
                    result["messages"]
                    == result["calls"]
                    == (whole if result["status"] == "completed" else whole[: len(result["messages"])])
                )
            assert sorted(result["seq"] for result in found) == list(range(1, len(found) + 1))
            read = self.send("XREADGROUP", "GROUP", "sink", "reader", "STREAMS", keys.results(name), ">")
            entries = [entry for entry, _ in (read[0][1] if read else ())]
            assert self.script("ack", name, "sink", 100, *entries) == 1
        buried = [fields[1] for _, fields in self.send("XRANGE", keys.dead, "-", "+")]
        assert len(buried) == len(set(buried))
        self.admit(1)
        with Redis.from_url(self.url) as client:
            assert leaked_keys(client, ("gymq:{0}:alive:*",)) == []


def test_every_rollout_ends_once_whatever_is_lost_doubled_delayed_or_killed(redis_url):
    # Nothing is shrunk: that would take minutes, and a storm does not get smaller.
    options = settings(
        max_examples=30,
        stateful_step_count=20,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    Protocol.url = redis_url
    run_state_machine_as_test(Protocol, settings=options)
