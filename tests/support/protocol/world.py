"""The server of the model: the real scripts on a real Redis, and what processes do with them, one command at a time."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import pytest
from redis import Redis

from gymq.errors import GymqError
from gymq.runtime import mailbox
from gymq.runtime.mailbox import Mail, Mailboxes
from gymq.settings import Settings
from gymq.store import runs, scripts
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig
from gymq.store.scripts import AckOutcome, HandBackReason, ScriptCall
from gymq.store.worker_registry import WorkerEntry
from gymq.wire.consumer_member import ConsumerMember, Epoch
from tests.support.protocol.history import Consumed, History, Run
from tests.support.protocol.worker import BOXES, NUMBERS, RESOURCE, Reader, Worker
from tests.support.redis_server import roll_back, snapshot
from tests.support.rollouts import BORN
from tests.support.shard import keys

#: Seconds after which a silent worker counts as dead; the model has a clock of its own, and keys lapse when it says so.
LIVENESS = 3600.0

#: Seconds that what is done with is kept: longer than any test.
TTL = 10_000

#: Rollouts in flight of each run.
CREDITS = 3

#: What a hand-back adds to mail: deaths, strikes, the last that died with it; and what private mail says besides.
_ADDED = (b"a", b"k", b"w", b"m")

#: Errors with which a server refuses what writes: the option that makes them, its value then, and before.
REFUSALS: dict[str, tuple[str, int, int]] = {
    "NOREPLICAS": ("min-replicas-to-write", 1, 0),
    "OOM": ("maxmemory", 1, 0),
    "READONLY": ("", 0, 0),
}

T = TypeVar("T")

Fields = list[bytes]


class World:
    """One shard, its processes, and what must be true of it.

    Args:
        url: the server's.
        samples: run -> samples of each of its rows.
    """

    def __init__(self, url: str, samples: dict[str, int]) -> None:
        self.runner = asyncio.Runner()
        self.redis = Redis.from_url(url)
        # The client makes a dictionary of an entry's fields; mail has several of one name.
        self._raw = Redis.from_url(url)
        self._raw.set_response_callback("XRANGE", lambda entries, **_: entries)
        self.redis.flushall()
        self.settings = Settings(redis_url=url, liveness=LIVENESS)
        self.connection = Connection(self.settings, "protocol")
        self.runner.run(self.connection.connect())
        for box in BOXES:
            self.runner.run(Mailboxes([box], keys).create(self.connection))
        self.history = History()
        for name, count in samples.items():
            self.history.runs[name] = Run(name, count, BORN)
            self._create(self.history.runs[name])
        self.ids = itertools.count(1)  # of turns and answers
        self.births = 0
        self.workers = [self.born(number) for number in NUMBERS]
        self.zombies: list[Worker] = []
        self.readers: dict[tuple[str, str], Reader] = {}
        #: Mail whose step or reply was applied, by stream and id.
        self.applied: set[tuple[bytes, bytes]] = set()
        self._snapshot: Any = None

    def close(self) -> None:
        """Close the connections."""
        self.runner.run(self.connection.close())
        self.runner.close()
        self.redis.close()
        self._raw.close()

    def script(self, call: ScriptCall[T]) -> T:
        """Run one script."""
        return self.runner.run(self.connection.run(call))

    def _create(self, run: Run) -> None:
        config = RunConfig(run.name, "e", "a", "m", samples=run.samples, concurrency=CREDITS, backlog=1000, created=run.born)
        assert self.runner.run(runs.create(self.connection, config))

    def remove(self, name: str) -> None:
        """Remove a run, and create it anew."""
        self.runner.run(runs.remove(self.connection, name))
        old = self.history.runs[name]
        self.history.runs[name] = Run(name, old.samples, BORN + next(self.ids))
        self._create(self.history.runs[name])
        for reader in self.readers.values():
            if reader.run == name:
                reader.held = {}

    # Mail.

    def entries(self, box: str) -> list[tuple[str, bytes, Fields]]:
        """All that lies in a mailbox or for it in private ones, delivered or not: stream, id, fields; what was put aside
        without its schema."""
        streams = [keys.suspects(box), keys.retry(box), keys.mailbox(box), keys.newer(box)]
        if box == RESOURCE:
            streams += [raw.decode() for raw in self.redis.keys(keys.private_mailbox("*"))]
        pipe = self._raw.pipeline(transaction=False)
        for stream in streams:
            pipe.execute_command("XRANGE", stream, "-", "+")
        return [
            (stream, id_, fields[2:] if stream == keys.newer(box) else fields)
            for stream, entries in zip(streams, pipe.execute(), strict=True)
            for id_, fields in entries
        ]

    def held(self, worker: Worker) -> list[Mail]:
        """What Redis says that a worker holds."""
        private = worker.private and self.redis.exists(keys.private_mailbox(worker.name)) == 1
        return self.runner.run(Mailboxes([worker.box], keys, worker.alone, private).held(self.connection, worker.name))

    def take(self, worker: Worker, most: int, lost: bool = False) -> None:
        """Take mail; or lose the answer and ask, after the outage, what it was."""
        streams = [keys.suspects(worker.box)] if worker.alone else [keys.retry(worker.box), keys.mailbox(worker.box)]
        if worker.private:
            if self.redis.exists(keys.private_mailbox(worker.name)):
                streams.insert(1, keys.private_mailbox(worker.name))
            else:
                # It was declared dead, and its next read tells it; what it had taken before that it may still do.
                assert worker in self.zombies
                with pytest.raises(GymqError, match="NOGROUP"):
                    self.script(scripts.take_mail(worker.name, most, [keys.private_mailbox(worker.name)]))
                return
        mail = mailbox.parse_mail(self.script(scripts.take_mail(worker.name, most, streams)))
        assert len(mail) <= most
        # Who has died at most once is no suspect, and what is one is read by nobody else.
        assert all((one.attempt >= 2) == worker.alone for one in mail)
        assert all(one.strikes <= max(one.attempt - 2, 0) for one in mail)
        if lost:
            known = {(one.stream, one.id) for one in worker.held}
            mail = [one for one in self.held(worker) if (one.stream, one.id) not in known]
        worker.held += mail

    def park(self, worker: Worker, mail: Mail, twice: bool) -> None:
        """Put mail aside as one that is too old to read it."""
        entry = scripts.ParkEntry(Mailboxes([worker.box], keys).of(mail), mail.stream, mail.id, 2)
        assert entry.mailbox == worker.box
        before = Counter(_plain(fields) for _, _, fields in self.entries(worker.box))
        outcomes = [self.script(scripts.park([entry])) for _ in range(1 + twice)]
        assert outcomes[1:] in ([], [0])
        assert Counter(_plain(fields) for _, _, fields in self.entries(worker.box)) == before
        worker.release(mail)

    def unpark(self, schema: int) -> None:
        """Look for what was put aside, as one that reads that schema."""
        aside = sum(self.redis.xlen(keys.newer(box)) for box in BOXES)
        assert self.script(scripts.unpark(schema, 1000, BOXES)) == scripts.Unparked(aside if schema >= 2 else 0, 0)

    # Life and death.

    def born(self, number: int) -> Worker:
        """A new incarnation, in the registry and alive."""
        self.births += 1
        worker = Worker(number, f"{number}-{self.births}")
        info = msgspec.json.encode(WorkerEntry("resource", "h", 1, [worker.box]))
        open_for = msgspec.json.encode([worker.box]) if worker.private else b""
        for _ in range(1 + self.births % 2):
            self.script(scripts.register_worker(worker.name, info, round(LIVENESS * 1000), open_for))
        return worker

    def shut(self, worker: Worker, most: int) -> int:
        """A worker that drains closes its private mailbox; what it has not taken goes to others, and nothing else moves."""
        own = keys.private_mailbox(worker.name)
        untaken = self.redis.xlen(own) - self.redis.xpending(own, "g")["pending"] if self.redis.exists(own) else 0
        before = Counter((_plain(fields), *_deaths(fields)) for _, _, fields in self.entries(RESOURCE))
        holds = {one.id for one in self.held(worker)}
        moved = self.script(scripts.close_mailbox(worker.name, most))
        assert moved == min(most, untaken)
        assert Counter((_plain(fields), *_deaths(fields)) for _, _, fields in self.entries(RESOURCE)) == before
        assert {one.id for one in self.held(worker)} == holds
        return moved

    def lapse(self, number: int, dies: bool) -> Worker:
        """A worker's key lapses, another takes its place; it died, or goes on and does not know."""
        worker = self.workers[number]
        self.redis.delete(keys.alive(worker.name))
        if not dies:
            self.zombies.append(worker)
        self.workers[number] = self.born(number)
        return worker

    def hand_back(self, name: str, most: int, why: HandBackReason = HandBackReason.DEAD) -> int | None:
        """Hand back a worker's mail, and see that what it held, and nothing else, is where it belongs."""
        box = BOXES[int(name.partition("-")[0]) % 2]
        alive, info = self.redis.exists(keys.alive(name)), self.redis.hget(keys.workers, name)
        before = self.entries(box)
        expected = Counter((stream, _plain(fields), *_deaths(fields)) for stream, _, fields in before)
        own = keys.private_mailbox(name)
        streams = [keys.suspects(box), keys.retry(box), keys.mailbox(box), *([own] if self.redis.exists(own) else [])]
        pipe = self.redis.pipeline(transaction=False)
        for stream in streams:
            pipe.xpending_range(stream, "g", "-", "+", 1000, name)
        found = zip(streams, pipe.execute(), strict=True)
        pending = {(stream, one["message_id"]) for stream, held in found for one in held}
        theirs = [entry for entry in before if entry[:2] in pending]
        # What lies in its private mailbox and was not taken goes last.
        theirs += [entry for entry in before if entry[0] == own and entry[:2] not in pending]
        moved = self.script(scripts.hand_back(name, most, why, [box]))
        if why in (HandBackReason.DEAD, HandBackReason.OUTAGE) and alive:
            assert moved is None
            return moved
        assert moved == min(most, len(theirs))
        death = int(why in (HandBackReason.DEAD, HandBackReason.DEFECT) and info is not None)
        for stream, id_, fields in theirs[:moved]:
            deaths, strikes = _deaths(fields)
            died = death if (stream, id_) in pending else 0
            expected[stream, _plain(fields), deaths, strikes] -= 1
            alone = stream == keys.suspects(box)
            to = keys.suspects(box) if alone or deaths + died >= 2 else keys.retry(box)
            expected[to, _plain(fields), deaths + died, strikes + (died if alone else 0)] += 1
        now = Counter((stream, _plain(fields), *_deaths(fields)) for stream, _, fields in self.entries(box))
        assert now == +expected
        # Whoever has handed back all stands there no more; until then it counts as dead, or leaves.
        info = self.redis.hget(keys.workers, name)
        assert info is None if moved < most else info is None or info.startswith(b"dead")
        assert not self.redis.hget(keys.private, name), "it is dead, or leaves, and mail may still be sent to it"
        assert moved == most or not self.redis.exists(own)
        return moved

    def judge(self, most: int, finish: bool, why: HandBackReason = HandBackReason.DEAD) -> None:
        """Hand back what the dead hold: all of it, or only the first batch."""
        alive = {worker.name for worker in self.workers}
        for raw in self.redis.hkeys(keys.workers):
            moved = self.hand_back(raw.decode(), most, why)
            assert (moved is None) == (raw.decode() in alive)
            while finish and moved == most:
                moved = self.hand_back(raw.decode(), most, why)
        for box in BOXES:
            for orphan in self.script(scripts.find_orphans([box])).workers:
                assert self.redis.hget(keys.workers, orphan) is None
                self.hand_back(orphan, 100)

    # Redis refuses, and loses what it had confirmed.

    @contextmanager
    def refusing(self, kind: str) -> Iterator[None]:
        """Let the server refuse what writes, for a while, by the error of that name."""
        option, away, there = REFUSALS[kind]
        if option:
            self.redis.config_set(option, away)
        else:
            self.redis.replicaof("127.0.0.1", 1)  # a master that is not there
        try:
            yield
        finally:
            if option:
                self.redis.config_set(option, there)
            else:
                self.redis.replicaof("NO", "ONE")

    def remember(self) -> None:
        """Take a snapshot."""
        self._snapshot = snapshot(self.redis), copy.deepcopy(self.history)

    @property
    def can_go_back(self) -> bool:
        """Whether there is a snapshot."""
        return self._snapshot is not None

    def go_back(self, resend: bool) -> None:
        """Redis is what it was at the snapshot; the processes are not.

        Args:
            resend: whether consumers send once more, first of all, that they have used what they hold.
        """
        found, history = self._snapshot
        roll_back(self.redis, found)
        self.history = copy.deepcopy(history)
        for raw in self.redis.keys(keys.alive("*")):
            if raw.decode().rpartition(":")[2] not in {worker.name for worker in self.workers}:
                self.redis.delete(raw)  # it is dead, or a zombie: nobody renews it, and it lapses again
        for reader in self.readers.values():
            if resend:
                self.acknowledge(reader, list(reader.held))
            reader.held = {}
            self.recall(reader)

    # Consumers.

    def declare(self, name: str, consumer: str) -> None:
        """Declare a consumer; one that comes late sees what is still there."""
        known = self.history.runs[name]
        stream = [known.address(fields[b"r"].decode()) for _, fields in self.redis.xrange(keys.results(name))]
        missed = self.script(scripts.declare_consumer(name, consumer))
        if consumer not in known.consumers:
            assert missed == len(known.ended) - len(stream)
            known.consumers[consumer] = Consumed(set(stream))
        self.readers.setdefault((name, consumer), Reader(name, consumer))

    def drop(self, reader: Reader) -> None:
        """Forget a consumer."""
        known = self.history.runs[reader.run].consumers.pop(reader.name, None)
        assert self.script(scripts.drop_consumer(reader.run, reader.name)) == (known is not None)
        del self.readers[reader.run, reader.name]

    def consumed(self, reader: Reader) -> Consumed | None:
        """What Redis must have given to a reader; None: it is not declared."""
        return self.history.runs[reader.run].consumers.get(reader.name)

    def read(self, reader: Reader, most: int) -> None:
        """Read what is new."""
        consumed = self.consumed(reader)
        if consumed is None:  # Redis went back to before it was declared: it declares itself again
            self.declare(reader.run, reader.name)
            consumed = self.history.runs[reader.run].consumers[reader.name]
        reply = self.redis.xreadgroup(reader.name, "reader", {keys.results(reader.run): ">"}, count=most)
        for entry, fields in reply[0][1] if reply else ():
            rid = self.history.runs[reader.run].address(fields[b"r"].decode())
            assert rid not in consumed.delivered.values(), f"{rid} came twice"
            consumed.delivered[entry] = reader.held[entry] = rid

    def recall(self, reader: Reader) -> None:
        """After an outage, or in another process: what was delivered and not acknowledged."""
        consumed = self.consumed(reader)
        if consumed is None:
            return
        self.join(reader)
        reply = self.redis.xreadgroup(reader.name, "reader", {keys.results(reader.run): "0"}, count=1000)
        run = self.history.runs[reader.run]
        again = {entry: run.address(fields[b"r"].decode()) for entry, fields in (reply[0][1] if reply else ())}
        assert again == {entry: rid for entry, rid in consumed.delivered.items() if rid not in consumed.acked}
        reader.held |= again

    def join(self, reader: Reader) -> None:
        """Another process becomes the reader, or the same one does again."""
        reader.stale, epoch = reader.epoch, Epoch.after(reader.epoch)
        joined = self.script(scripts.join_consumer(ConsumerMember(reader.run, reader.name, "reader", epoch)))
        assert joined is not None and joined.number is not None and joined.number >= epoch.number
        reader.epoch = epoch._replace(number=joined.number)

    def _ack(self, reader: Reader, entries: list[bytes]) -> AckOutcome:
        """Acknowledge as the reader; the process before it changes nothing."""
        if self.consumed(reader) is not None and reader.epoch is None:
            self.join(reader)
        for _ in range(2):
            if reader.stale is not None:
                address = ConsumerMember(reader.run, reader.name, "reader", reader.stale)
                assert self.script(scripts.ack(address, TTL, entries)) < AckOutcome.RUN_GOES_ON
            address = ConsumerMember(reader.run, reader.name, "reader", reader.epoch or Epoch.after(None))
            outcome = self.script(scripts.ack(address, TTL, entries))
            if outcome is not AckOutcome.EPOCH_LOST:
                return outcome
            self.join(reader)
        return outcome

    def acknowledge(self, reader: Reader, entries: list[bytes]) -> None:
        """Acknowledge entries, used or seen before."""
        known, consumed = self.history.runs[reader.run], self.consumed(reader)
        for entry in entries:
            reader.seen.add(reader.held[entry])
        for _ in range(2):
            done = self._ack(reader, entries)
            if consumed is None:
                assert done is AckOutcome.UNKNOWN_CONSUMER
                continue
            consumed.acked |= {consumed.delivered[entry] for entry in entries if entry in consumed.delivered}
            assert done == known.is_over()
            known.state = "done" if done else known.state
            # What all have acknowledged is gone.
            for _, fields in self.redis.xrange(keys.results(reader.run), count=1):
                rid = known.address(fields[b"r"].decode())
                assert any(rid in other.due - other.acked for other in known.consumers.values())
        for entry in entries:
            del reader.held[entry]

    # The end of a rollout.

    def ended(self, rid: str, status: str) -> None:
        """A final commit was confirmed: look at what stands in the results."""
        known = self.history.run_of(rid)
        known.end(rid, status)
        newest = self.redis.xrevrange(keys.results(known.name), count=10)  # several may end in one commit
        fields = next(fields for _, fields in newest if known.address(fields[b"r"].decode()) == rid)
        record = json.loads(fields[b"b"])
        assert (known.address(fields[b"r"].decode()), record["id"], record["status"]) == (rid, rid, status)
        assert record["seq"] == int(fields[b"n"]) == len(known.ended)
        row = int(rid.split(".")[1])
        assert (fields[b"l"] == b"1") == all(other in known.ended for other in known.members(row))
        check_story(record["messages"])
        assert record["messages"][0]["task"].encode() == known.tasks[row], "a conversation about another run's task"
        assert record["calls"] == record["messages"]
        assert not self.redis.exists(keys.rollout(rid), keys.messages(rid), keys.calls(rid))


def check_story(turns: list[dict[str, Any]]) -> None:
    """A transcript is one history: each turn was decided on the one before it, and on answers to what that one asked."""
    before = None
    for version, turn in enumerate(turns):
        assert turn["v"] == version, f"a turn is missing or doubled: {turns}"
        assert turn["after"] == before, f"a turn was decided on another history: {turns}"
        assert all(asked == before for asked in turn["answers"]), f"an answer to another history's question: {turns}"
        before = turn["id"]


def _plain(fields: Fields) -> tuple[bytes, ...]:
    """Mail without what hand-backs have added."""
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return tuple(part for name, value in pairs if name not in _ADDED for part in (name, value))


def _deaths(fields: Fields) -> tuple[int, int]:
    """Deaths and strikes of mail."""
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    return int(pairs.get(b"a", 0)), int(pairs.get(b"k", 0))
