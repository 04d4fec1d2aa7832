"""Private mailboxes: mail is sent to one worker while it is there for it, and to anybody as soon as it is not."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gymq.ops.status import overview
from gymq.runtime import mailbox, membership
from gymq.runtime.actor import Actor
from gymq.runtime.mailbox import Mailboxes, MailboxGone
from gymq.runtime.membership import Membership
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards
from gymq.store.worker_registry import WorkerEntry
from tests.support.rollouts import Pretender, address, linked
from tests.support.shard import keys
from tests.support.waiting import until

BOX = "model:m"
RETRY = keys.retry(BOX)


@pytest.fixture
async def boxes(connection, monkeypatch):
    monkeypatch.setattr(mailbox, "BLOCK_MS", 20)
    boxes = Mailboxes([BOX], keys, private=True)
    await boxes.create(connection)
    return boxes


@pytest.fixture
async def run(connection):
    """A run whose next rollout is admitted by each call of `send`."""
    pretender = Pretender(connection, RunConfig("r", "weather", "tool", "scripted", concurrency=1000))
    await pretender.create("sink")
    await pretender.enqueue(200)
    for _ in range(10):
        await pretender.admit()
    return pretender


async def enter(connection, *workers: str, ms: int = 60_000) -> None:
    for worker in workers:
        entry = msgspec.json.encode(WorkerEntry("model", "h", 1, ["model:m"]))
        await connection.run(scripts.register_worker(worker, entry, ms, msgspec.json.encode([BOX])))


async def send(connection, row: int, workers=(), margin: int = 0, calls: int = 1) -> None:
    """Commit a step of a rollout that sends calls."""
    sends = [scripts.Send(BOX, b"%d.%d" % (row, n), *((list(workers), margin) if workers else ())) for n in range(calls)]
    step = scripts.CommitStep(address(f"r.{row}.0"), 0, sends=sends, due=5, token="1.0")
    assert await connection.run(scripts.commit([step])) == [scripts.CommitOutcome.APPLIED]


async def lies(connection, stream: str) -> list[bytes]:
    return [fields[1] for _, fields in await connection.send("XRANGE", stream, "-", "+")]


async def where(connection, *workers: str) -> list[int]:
    """How much lies with each worker, and in the shared mailbox."""
    return [await connection.send("XLEN", key) for key in (*map(keys.private_mailbox, workers), keys.mailbox(BOX))]


# Sending.


async def test_mail_goes_to_the_first_worker_and_says_what_it_was_meant_for(connection, run):
    await enter(connection, "a", "b")
    await send(connection, 0, ["a", "b"])
    ((_, fields),) = await connection.send("XRANGE", keys.private_mailbox("a"), "-", "+")
    assert fields == [b"c", b"0.0", b"m", BOX.encode()]
    assert await where(connection, "a", "b") == [1, 0, 0]


async def test_the_second_gets_it_when_the_first_has_more_than_the_margin_ahead(connection, run):
    await enter(connection, "a", "b", "c")
    for row in range(4):
        await send(connection, row, ["a", "b"], 3)
    assert await where(connection, "a", "b") == [4, 0, 0]
    await send(connection, 4, ["a", "b", "c"], 3)
    await send(connection, 5, ["a", "b", "c"], 3)
    assert await where(connection, "a", "b", "c") == [4, 1, 1, 0]


async def test_the_margin_grows_by_a_quarter_of_what_lies_with_the_other(connection, run):
    await enter(connection, "a", "b")
    await send(connection, 0, ["b"], calls=40)
    await send(connection, 1, ["a"], calls=50)
    await send(connection, 2, ["a", "b"])  # 50 against 40 and a quarter
    await send(connection, 3, ["a", "b"])
    assert await where(connection, "a", "b") == [51, 41, 0]


@pytest.mark.parametrize("why", ["unknown", "shut", "lapsed", "dead"])
async def test_a_worker_that_is_not_there_for_it_gets_nothing(connection, run, why):
    # Given a worker that never was, drains, has lapsed, or is being handed back
    await enter(connection, "b")
    if why != "unknown":
        await enter(connection, "a")
        await send(connection, 10, ["a"], calls=3)
    if why == "shut":
        await connection.run(scripts.close_mailbox("a", 100))
    if why in ("lapsed", "dead"):
        await connection.send("DEL", keys.alive("a"))
    if why == "dead":
        assert await connection.run(scripts.hand_back("a", 1, scripts.HandBackReason.DEAD, [BOX])) == 1
    before = await connection.send("XLEN", keys.private_mailbox("a"))
    # When something is sent to it, with and without an alternative
    await send(connection, 0, ["a", "b"], 100)
    await send(connection, 1, ["a"], 100)
    # Then the alternative gets it, or the shared mailbox
    assert await where(connection, "a", "b") == [before, 1, 1]
    assert await lies(connection, keys.mailbox(BOX)) == [b"1.0"]


async def test_a_private_mailbox_that_somebody_deleted_is_not_made_anew(connection, run):
    await enter(connection, "a")
    await connection.send("DEL", keys.private_mailbox("a"))
    await send(connection, 0, ["a"])
    assert await where(connection, "a") == [0, 1]
    # And its worker leaves it for a new name
    assert await connection.run(scripts.renew_worker("a", 1000, True)) is False
    assert await connection.run(scripts.renew_worker("a", 1000, False)) is True


async def test_all_calls_of_a_step_that_name_workers_go_one_way(connection, run):
    await enter(connection, "a", "b")
    await send(connection, 0, ["a", "b"], calls=5)
    assert await where(connection, "a", "b") == [5, 0, 0]


async def test_a_step_that_names_nobody_is_sent_as_ever(connection, run):
    await enter(connection, "a")
    await send(connection, 0)
    ((_, fields),) = await connection.send("XRANGE", keys.mailbox(BOX), "-", "+")
    assert fields == [b"c", b"0.0"]


# Reading.


@pytest.mark.parametrize("free", [1, 2, 50])
async def test_private_mail_is_taken_with_the_rest_and_starves_nobody(connection, boxes, run, free):
    await enter(connection, "a")
    await send(connection, 0, ["a"], calls=20)
    await send(connection, 1)
    await connection.send("XADD", RETRY, "*", "c", "again", "a", 1)
    found = [mail.fields[1] for _ in range(4) for mail in await boxes.take(connection, "a", free)]
    assert found[0] == b"again"
    assert {b"1.0", b"0.0"} <= set(found)
    held = await boxes.held(connection, "a")
    assert {mail.fields[1] for mail in held} == set(found)
    assert {boxes.of(mail) for mail in held} == {BOX}


@pytest.mark.parametrize("free", [1, 50])
async def test_who_was_declared_dead_hears_of_it_when_it_reads(connection, settings, boxes, free):
    await enter(connection, "a")
    async with linked(settings) as other:
        reading = asyncio.create_task(boxes.take(connection, "a", free))
        await asyncio.sleep(0.01)
        await other.send("DEL", keys.alive("a"))
        assert await other.run(scripts.hand_back("a", 100, scripts.HandBackReason.DEAD, [BOX])) == 0
    # It may have come back empty-handed just before.
    with pytest.raises(MailboxGone):
        await reading
        await boxes.take(connection, "a", free)
    with pytest.raises(MailboxGone):
        await boxes.held(connection, "a")


# The end of a worker.


async def test_shutting_gives_away_what_was_not_taken_and_leaves_what_was(connection, boxes, run):
    await enter(connection, "a")
    for row in range(6):
        await send(connection, row, ["a"])
    taken = [mail.fields[1] for mail in await boxes.take(connection, "a", 6)]
    assert taken == [b"0.0", b"1.0"]
    assert await connection.run(scripts.close_mailbox("a", 3)) == 3
    assert await connection.run(scripts.close_mailbox("a", 3)) == 1
    assert await connection.run(scripts.close_mailbox("a", 3)) == 0
    assert await lies(connection, RETRY) == [b"2.0", b"3.0", b"4.0", b"5.0"]
    assert {len(fields) for _, fields in await connection.send("XRANGE", RETRY, "-", "+")} == {2}  # no attempt
    assert [mail.fields[1] for mail in await boxes.held(connection, "a")] == taken


@pytest.mark.parametrize("why", ["0", "1", "2"])
@pytest.mark.parametrize("most", [1, 2, 3, 100])
async def test_all_that_lies_with_a_worker_is_handed_back_and_what_it_had_counts_as_a_death(connection, boxes, run, why, most):
    # Given a worker with private mail, of which it has taken two, and one message of the shared mailbox
    await enter(connection, "a")
    for row in range(5):
        await send(connection, row, ["a"])
    await send(connection, 5)
    while len(held := await boxes.held(connection, "a")) < 3:
        await boxes.take(connection, "a", 1)
    held = {mail.fields[1] for mail in held}
    if why == "0":
        await connection.send("DEL", keys.alive("a"))
    # When it is handed back
    moved = [await connection.run(scripts.hand_back("a", most, scripts.HandBackReason(int(why)), [BOX]))]
    while moved[-1] == most:
        moved.append(await connection.run(scripts.hand_back("a", most, scripts.HandBackReason(int(why)), [BOX])))
    # Then all of it lies in the retry stream, once
    assert sum(moved) == 6
    back = {fields[1]: fields for _, fields in await connection.send("XRANGE", RETRY, "-", "+")}
    assert set(back) == {b"%d.0" % row for row in range(6)}
    for body, fields in back.items():
        assert fields[2:] == [b"a", b"1" if body in held and why != "1" else b"0"]
    # and of the worker nothing is left
    assert await connection.send("EXISTS", keys.private_mailbox("a"), keys.private, keys.workers, keys.alive("a")) == 0


async def test_mail_that_nobody_of_ours_sent_is_dropped_with_its_worker(connection, boxes):
    await enter(connection, "a")
    await connection.send("XADD", keys.private_mailbox("a"), "*", "c", "no mailbox")
    await connection.send("XADD", keys.private_mailbox("a"), "*", "m", BOX)
    assert await connection.run(scripts.close_mailbox("a", 100)) == 2
    await connection.send("XADD", keys.private_mailbox("a"), "*", "m", BOX)
    assert await connection.run(scripts.hand_back("a", 100, scripts.HandBackReason.LEAVING, [BOX])) == 1
    assert await connection.send("XLEN", RETRY) == 0


async def test_a_private_mailbox_without_a_registered_worker_is_found(connection, boxes, run):
    await enter(connection, "a")
    await send(connection, 0, ["a"])
    await connection.send("HDEL", keys.workers, "a")
    await connection.send("DEL", keys.alive("a"))
    assert (await connection.run(scripts.find_orphans([BOX]))).workers == ["a"]
    assert await connection.run(scripts.hand_back("a", 100, scripts.HandBackReason.DEAD, [BOX])) == 1
    assert await lies(connection, RETRY) == [b"0.0"]
    assert (await connection.run(scripts.find_orphans([BOX]))).workers == []


async def test_who_enters_twice_entered_once_and_keeps_its_mail(connection, boxes, run):
    await enter(connection, "a")
    await send(connection, 0, ["a"])
    await boxes.take(connection, "a", 1)
    await boxes.take(connection, "a", 1)
    await enter(connection, "a")
    assert [mail.fields[1] for mail in await boxes.held(connection, "a")] == [b"0.0"]


async def test_mail_that_is_too_new_is_put_aside_and_taken_up_for_anybody(connection, boxes, run):
    await enter(connection, "a")
    await send(connection, 0, ["a"])
    (mail,) = [one for _ in range(3) for one in await boxes.take(connection, "a", 1)]
    assert await connection.run(scripts.park([scripts.ParkEntry(boxes.of(mail), mail.stream, mail.id, 2)])) == 1
    assert await where(connection, "a") == [0, 0]
    assert await connection.run(scripts.unpark(2, 100, [BOX])) == scripts.Unparked(1, 0)
    assert await lies(connection, RETRY) == [b"0.0"]


async def test_who_wants_none_has_none(connection, settings):
    life = Membership(settings, connection, WorkerEntry("r", "h", 1, [BOX]))
    await life.begin()
    assert await connection.send("EXISTS", keys.private_mailbox(life.worker), keys.private) == 0
    await life.shut()
    assert await life.renew()


async def test_status_shows_private_mailboxes_in_which_mail_lies(connection, settings, boxes, run):
    for n, worker in enumerate("ab"):
        info = WorkerEntry("model", "h", n, [BOX])
        await connection.run(scripts.register_worker(worker, msgspec.json.encode(info), 60_000, msgspec.json.encode([BOX])))
    await send(connection, 0, ["a"], calls=3)
    while not await boxes.held(connection, "a"):
        await boxes.take(connection, "a", 1)
    async with Shards(settings, "test") as shards:
        found = (await overview(shards)).mailboxes
    assert [(box.waiting, box.taken, box.workers) for box in found if box.name == "@a"] == [(2, 1, 1)]
    assert not [box for box in found if box.name == "@b"]


# A whole actor.


class Worker(Actor):
    """Takes what comes and holds it."""

    role = "model"
    private = True

    def mailboxes(self):
        return [BOX]

    async def handle(self, mail):
        self.bodies = [*getattr(self, "bodies", []), *(one.fields[1] for one in mail)]


async def test_an_actor_that_was_declared_dead_begins_anew_and_gets_private_mail_again(settings, connection, run, monkeypatch):
    actor = Worker(settings, {})
    actor.quarantines = None
    life = asyncio.create_task(actor.main())
    await until(lambda: actor.worker)
    first = actor.worker
    await send(connection, 0, [first])
    await until(lambda: getattr(actor, "bodies", []) == [b"0.0"])
    # When its key has lapsed, and it is handed back
    await connection.send("DEL", keys.alive(first))
    assert await connection.run(scripts.hand_back(first, 100, scripts.HandBackReason.DEAD, [BOX])) == 1
    # Then it drops what it held, and is there under another name, with what was handed back
    await until(lambda: actor.worker != first and len(actor.bodies) == 2)
    assert actor.counts["lapses"] == 1
    await send(connection, 1, [actor.worker])
    await until(lambda: actor.bodies[2:] == [b"1.0"])
    assert await connection.send("HKEYS", keys.private) == [actor.worker.encode()]
    # and when it ends, nothing of it is left
    monkeypatch.setattr("gymq.runtime.actor.DRAIN", 0.1)
    actor.drain()
    await life
    assert await connection.send("EXISTS", keys.private, keys.workers, keys.private_mailbox(actor.worker)) == 0
    assert sorted(await lies(connection, RETRY)) == [b"0.0", b"1.0"]


async def test_a_draining_actor_gives_away_what_it_has_not_begun_at_once(settings, connection, run):
    actor = Worker(settings, {}, capacity=1)
    actor.quarantines = None
    life = asyncio.create_task(actor.main())
    await until(lambda: actor.worker)
    await send(connection, 0, [actor.worker], calls=1)
    await until(lambda: getattr(actor, "bodies", []) == [b"0.0"])
    await send(connection, 1, [actor.worker], calls=150)
    # When it drains, and holds a call that takes long
    actor.drain()
    # Then others have the rest while it still works
    async with asyncio.timeout(10):
        while await connection.send("XLEN", RETRY) < 150:
            await asyncio.sleep(0.05)
    assert not life.done()
    await send(connection, 2, [actor.worker])
    assert await lies(connection, keys.mailbox(BOX)) == [b"2.0"]
    actor.stop()
    await life
    assert await connection.send("XLEN", RETRY) == 151


async def test_a_worker_that_cannot_work_for_a_while_closes_its_mailbox_and_opens_it_again(settings, connection, run):
    await Mailboxes([BOX], keys).create(connection)
    async with linked(settings) as own:
        life = Membership(settings, own, WorkerEntry("r", "h", 1, [BOX]), private=True)
        await life.begin()
        await send(connection, 0, [life.worker])
        await life.shut()
        await send(connection, 1, [life.worker])
        assert await where(connection, life.worker) == [0, 1]
        assert await lies(connection, RETRY) == [b"0.0"]
        # Also under its next name, until it opens it.
        await life.begin()
        await send(connection, 2, [life.worker])
        assert await where(connection, life.worker) == [0, 2]
        await life.open()
        await send(connection, 3, [life.worker])
        assert await where(connection, life.worker) == [1, 2]
        # Once it was declared dead it opens nothing.
        await connection.send("DEL", keys.alive(life.worker))
        assert await connection.run(scripts.hand_back(life.worker, 1, scripts.HandBackReason.DEAD, [BOX])) == 1
        await life.open()
        assert await connection.send("HSTRLEN", keys.private, life.worker) == 0
        assert await connection.run(scripts.hand_back(life.worker, 1, scripts.HandBackReason.DEAD, [BOX])) == 0
        await life.open()
        assert await connection.send("EXISTS", keys.private_mailbox(life.worker)) == 0


async def test_judges_hand_back_more_than_one_script_moves(settings, connection, run):
    assert membership.HANDBACK_BATCH < 150
    other = Connection(settings, "judge")
    await other.connect()
    judge = Membership(settings, other, WorkerEntry("r", "h", 1, [BOX]))
    await Mailboxes([BOX], keys).create(connection)
    await judge.begin()
    await enter(connection, "a")
    await send(connection, 0, ["a"], calls=150)
    await connection.send("DEL", keys.alive("a"))
    async with asyncio.timeout(10):
        while await connection.send("XLEN", RETRY) < 150:
            await judge.renew()
            await judge.sweep()
            await asyncio.sleep(0.1)
    assert await connection.send("EXISTS", keys.private_mailbox("a"), keys.private) == 0
    await judge.leave()
    await other.close()
