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
from gymq.store.batching import pack
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig
from gymq.store.sharded import Shards
from tests.support.rollouts import Pretender, linked
from tests.support.shard import keys

BOX = "model:m"
RETRY = keys.retry(BOX)


@pytest.fixture
async def boxes(link, monkeypatch):
    monkeypatch.setattr(mailbox, "BLOCK_MS", 20)
    boxes = Mailboxes([BOX], keys, private=True)
    await boxes.create(link)
    return boxes


@pytest.fixture
async def run(link):
    """A run whose next rollout is admitted by each call of `send`."""
    pretender = Pretender(link, RunConfig("r", "weather", "tool", "scripted", concurrency=1000))
    await pretender.create("sink")
    await pretender.enqueue(200)
    for _ in range(10):
        await pretender.admit()
    return pretender


async def enter(link, *workers: str, ms: int = 60_000) -> None:
    for worker in workers:
        await link.run("enter", worker, b'{"mailboxes":["model:m"]}', ms, msgspec.json.encode([BOX]))


async def send(link, row: int, workers=(), margin: int = 0, calls: int = 1) -> None:
    """Commit a step of a rollout that sends calls."""
    sends = [[BOX, b"%d.%d" % (row, n), *((list(workers), margin) if workers else ())] for n in range(calls)]
    step = [f"r.{row}.0", 0, "", "", [], [], [], sends, 5, [], 0, [], 0, "1.0"]
    assert await link.run("commit", pack([step])) == [1]


async def lies(link, stream: str) -> list[bytes]:
    return [fields[1] for _, fields in await link.send("XRANGE", stream, "-", "+")]


async def where(link, *workers: str) -> list[int]:
    """How much lies with each worker, and in the shared mailbox."""
    return [await link.send("XLEN", key) for key in (*map(keys.private_mailbox, workers), keys.mailbox(BOX))]


# Sending.


async def test_mail_goes_to_the_first_worker_and_says_what_it_was_meant_for(link, run):
    await enter(link, "a", "b")
    await send(link, 0, ["a", "b"])
    ((_, fields),) = await link.send("XRANGE", keys.private_mailbox("a"), "-", "+")
    assert fields == [b"c", b"0.0", b"m", BOX.encode()]
    assert await where(link, "a", "b") == [1, 0, 0]


async def test_the_second_gets_it_when_the_first_has_more_than_the_margin_ahead(link, run):
    await enter(link, "a", "b", "c")
    for row in range(4):
        await send(link, row, ["a", "b"], 3)
    assert await where(link, "a", "b") == [4, 0, 0]
    await send(link, 4, ["a", "b", "c"], 3)
    await send(link, 5, ["a", "b", "c"], 3)
    assert await where(link, "a", "b", "c") == [4, 1, 1, 0]


async def test_the_margin_grows_by_a_quarter_of_what_lies_with_the_other(link, run):
    await enter(link, "a", "b")
    await send(link, 0, ["b"], calls=40)
    await send(link, 1, ["a"], calls=50)
    await send(link, 2, ["a", "b"])  # 50 against 40 and a quarter
    await send(link, 3, ["a", "b"])
    assert await where(link, "a", "b") == [51, 41, 0]


@pytest.mark.parametrize("why", ["unknown", "shut", "lapsed", "dead"])
async def test_a_worker_that_is_not_there_for_it_gets_nothing(link, run, why):
    # Given a worker that never was, drains, has lapsed, or is being handed back
    await enter(link, "b")
    if why != "unknown":
        await enter(link, "a")
        await send(link, 10, ["a"], calls=3)
    if why == "shut":
        await link.run("shut", "a", 100)
    if why in ("lapsed", "dead"):
        await link.send("DEL", keys.alive("a"))
    if why == "dead":
        assert await link.run("handback", "a", 1, "0", BOX) == 1
    before = await link.send("XLEN", keys.private_mailbox("a"))
    # When something is sent to it, with and without an alternative
    await send(link, 0, ["a", "b"], 100)
    await send(link, 1, ["a"], 100)
    # Then the alternative gets it, or the shared mailbox
    assert await where(link, "a", "b") == [before, 1, 1]
    assert await lies(link, keys.mailbox(BOX)) == [b"1.0"]


async def test_a_private_mailbox_that_somebody_deleted_is_not_made_anew(link, run):
    await enter(link, "a")
    await link.send("DEL", keys.private_mailbox("a"))
    await send(link, 0, ["a"])
    assert await where(link, "a") == [0, 1]
    # And its worker leaves it for a new name
    assert await link.run("rejoin", "a", 1000, 1) == 0
    assert await link.run("rejoin", "a", 1000, 0) == 1


async def test_all_calls_of_a_step_that_name_workers_go_one_way(link, run):
    await enter(link, "a", "b")
    await send(link, 0, ["a", "b"], calls=5)
    assert await where(link, "a", "b") == [5, 0, 0]


async def test_a_step_that_names_nobody_is_sent_as_ever(link, run):
    await enter(link, "a")
    await send(link, 0)
    ((_, fields),) = await link.send("XRANGE", keys.mailbox(BOX), "-", "+")
    assert fields == [b"c", b"0.0"]


# Reading.


@pytest.mark.parametrize("free", [1, 2, 50])
async def test_private_mail_is_taken_with_the_rest_and_starves_nobody(link, boxes, run, free):
    await enter(link, "a")
    await send(link, 0, ["a"], calls=20)
    await send(link, 1)
    await link.send("XADD", RETRY, "*", "c", "again", "a", 1)
    found = [mail.fields[1] for _ in range(4) for mail in await boxes.take(link, "a", free)]
    assert found[0] == b"again"
    assert {b"1.0", b"0.0"} <= set(found)
    held = await boxes.held(link, "a")
    assert {mail.fields[1] for mail in held} == set(found)
    assert {boxes.of(mail) for mail in held} == {BOX}


@pytest.mark.parametrize("free", [1, 50])
async def test_who_was_declared_dead_hears_of_it_when_it_reads(link, settings, boxes, free):
    await enter(link, "a")
    async with linked(settings) as other:
        reading = asyncio.create_task(boxes.take(link, "a", free))
        await asyncio.sleep(0.01)
        await other.send("DEL", keys.alive("a"))
        assert await other.run("handback", "a", 100, "0", BOX) == 0
    # It may have come back empty-handed just before.
    with pytest.raises(MailboxGone):
        await reading
        await boxes.take(link, "a", free)
    with pytest.raises(MailboxGone):
        await boxes.held(link, "a")


# The end of a worker.


async def test_shutting_gives_away_what_was_not_taken_and_leaves_what_was(link, boxes, run):
    await enter(link, "a")
    for row in range(6):
        await send(link, row, ["a"])
    taken = [mail.fields[1] for mail in await boxes.take(link, "a", 6)]
    assert taken == [b"0.0", b"1.0"]
    assert await link.run("shut", "a", 3) == 3
    assert await link.run("shut", "a", 3) == 1
    assert await link.run("shut", "a", 3) == 0
    assert await lies(link, RETRY) == [b"2.0", b"3.0", b"4.0", b"5.0"]
    assert {len(fields) for _, fields in await link.send("XRANGE", RETRY, "-", "+")} == {2}  # no attempt
    assert [mail.fields[1] for mail in await boxes.held(link, "a")] == taken


@pytest.mark.parametrize("why", ["0", "1", "2"])
@pytest.mark.parametrize("most", [1, 2, 3, 100])
async def test_all_that_lies_with_a_worker_is_handed_back_and_what_it_had_counts_as_a_death(link, boxes, run, why, most):
    # Given a worker with private mail, of which it has taken two, and one message of the shared mailbox
    await enter(link, "a")
    for row in range(5):
        await send(link, row, ["a"])
    await send(link, 5)
    while len(held := await boxes.held(link, "a")) < 3:
        await boxes.take(link, "a", 1)
    held = {mail.fields[1] for mail in held}
    if why == "0":
        await link.send("DEL", keys.alive("a"))
    # When it is handed back
    moved = [await link.run("handback", "a", most, why, BOX)]
    while moved[-1] == most:
        moved.append(await link.run("handback", "a", most, why, BOX))
    # Then all of it lies in the retry stream, once
    assert sum(moved) == 6
    back = {fields[1]: fields for _, fields in await link.send("XRANGE", RETRY, "-", "+")}
    assert set(back) == {b"%d.0" % row for row in range(6)}
    for body, fields in back.items():
        assert fields[2:] == [b"a", b"1" if body in held and why != "1" else b"0"]
    # and of the worker nothing is left
    assert await link.send("EXISTS", keys.private_mailbox("a"), keys.private, keys.workers, keys.alive("a")) == 0


async def test_mail_that_nobody_of_ours_sent_is_dropped_with_its_worker(link, boxes):
    await enter(link, "a")
    await link.send("XADD", keys.private_mailbox("a"), "*", "c", "no mailbox")
    await link.send("XADD", keys.private_mailbox("a"), "*", "m", BOX)
    assert await link.run("shut", "a", 100) == 2
    await link.send("XADD", keys.private_mailbox("a"), "*", "m", BOX)
    assert await link.run("handback", "a", 100, "1", BOX) == 1
    assert await link.send("XLEN", RETRY) == 0


async def test_a_private_mailbox_without_a_registered_worker_is_found(link, boxes, run):
    await enter(link, "a")
    await send(link, 0, ["a"])
    await link.send("HDEL", keys.workers, "a")
    await link.send("DEL", keys.alive("a"))
    assert (await link.run("orphans", BOX))[0] == [b"a"]
    assert await link.run("handback", "a", 100, "0", BOX) == 1
    assert await lies(link, RETRY) == [b"0.0"]
    assert (await link.run("orphans", BOX))[0] == []


async def test_who_enters_twice_entered_once_and_keeps_its_mail(link, boxes, run):
    await enter(link, "a")
    await send(link, 0, ["a"])
    await boxes.take(link, "a", 1)
    await boxes.take(link, "a", 1)
    await enter(link, "a")
    assert [mail.fields[1] for mail in await boxes.held(link, "a")] == [b"0.0"]


async def test_mail_that_is_too_new_is_put_aside_and_taken_up_for_anybody(link, boxes, run):
    await enter(link, "a")
    await send(link, 0, ["a"])
    (mail,) = [one for _ in range(3) for one in await boxes.take(link, "a", 1)]
    assert await link.run("park", pack([[boxes.of(mail), mail.stream, mail.id, 2]])) == 1
    assert await where(link, "a") == [0, 0]
    assert await link.run("unpark", 2, 100, BOX) == [1, 0]
    assert await lies(link, RETRY) == [b"0.0"]


async def test_who_wants_none_has_none(link, settings):
    life = Membership(settings, link, {"role": "r", "host": "h", "pid": 1, "mailboxes": [BOX]})
    await life.begin()
    assert await link.send("EXISTS", keys.private_mailbox(life.worker), keys.private) == 0
    await life.shut()
    assert await life.renew()


async def test_status_shows_private_mailboxes_in_which_mail_lies(link, settings, boxes, run):
    for n, worker in enumerate("ab"):
        info = {"role": "model", "host": "h", "pid": n, "mailboxes": [BOX]}
        await link.run("enter", worker, msgspec.json.encode(info), 60_000, msgspec.json.encode([BOX]))
    await send(link, 0, ["a"], calls=3)
    while not await boxes.held(link, "a"):
        await boxes.take(link, "a", 1)
    shards = Shards(settings, "test")
    await shards.connect()
    found = (await overview(shards)).mailboxes
    await shards.close()
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


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_an_actor_that_was_declared_dead_begins_anew_and_gets_private_mail_again(settings, link, run, monkeypatch):
    actor = Worker(settings, {})
    actor.quarantine = None
    life = asyncio.create_task(actor.main())
    await until(lambda: actor.worker)
    first = actor.worker
    await send(link, 0, [first])
    await until(lambda: getattr(actor, "bodies", []) == [b"0.0"])
    # When its key has lapsed, and it is handed back
    await link.send("DEL", keys.alive(first))
    assert await link.run("handback", first, 100, "0", BOX) == 1
    # Then it drops what it held, and is there under another name, with what was handed back
    await until(lambda: actor.worker != first and len(actor.bodies) == 2)
    assert actor.counts["lapses"] == 1
    await send(link, 1, [actor.worker])
    await until(lambda: actor.bodies[2:] == [b"1.0"])
    assert await link.send("HKEYS", keys.private) == [actor.worker.encode()]
    # and when it ends, nothing of it is left
    monkeypatch.setattr("gymq.runtime.actor.DRAIN", 0.1)
    actor.drain()
    await life
    assert await link.send("EXISTS", keys.private, keys.workers, keys.private_mailbox(actor.worker)) == 0
    assert sorted(await lies(link, RETRY)) == [b"0.0", b"1.0"]


async def test_a_draining_actor_gives_away_what_it_has_not_begun_at_once(settings, link, run):
    actor = Worker(settings, {})
    actor.capacity, actor.quarantine = 1, None
    life = asyncio.create_task(actor.main())
    await until(lambda: actor.worker)
    await send(link, 0, [actor.worker], calls=1)
    await until(lambda: getattr(actor, "bodies", []) == [b"0.0"])
    await send(link, 1, [actor.worker], calls=150)
    # When it drains, and holds a call that takes long
    actor.drain()
    # Then others have the rest while it still works
    async with asyncio.timeout(10):
        while await link.send("XLEN", RETRY) < 150:
            await asyncio.sleep(0.05)
    assert not life.done()
    await send(link, 2, [actor.worker])
    assert await lies(link, keys.mailbox(BOX)) == [b"2.0"]
    actor.stop()
    await life
    assert await link.send("XLEN", RETRY) == 151


async def test_a_worker_that_cannot_work_for_a_while_closes_its_mailbox_and_opens_it_again(settings, link, run):
    await Mailboxes([BOX], keys).create(link)
    async with linked(settings) as own:
        life = Membership(settings, own, {"role": "r", "host": "h", "pid": 1, "mailboxes": [BOX]}, private=True)
        await life.begin()
        await send(link, 0, [life.worker])
        await life.shut()
        await send(link, 1, [life.worker])
        assert await where(link, life.worker) == [0, 1]
        assert await lies(link, RETRY) == [b"0.0"]
        # Also under its next name, until it opens it.
        await life.begin()
        await send(link, 2, [life.worker])
        assert await where(link, life.worker) == [0, 2]
        await life.open()
        await send(link, 3, [life.worker])
        assert await where(link, life.worker) == [1, 2]
        # Once it was declared dead it opens nothing.
        await link.send("DEL", keys.alive(life.worker))
        assert await link.run("handback", life.worker, 1, "0", BOX) == 1
        await life.open()
        assert await link.send("HSTRLEN", keys.private, life.worker) == 0
        assert await link.run("handback", life.worker, 1, "0", BOX) == 0
        await life.open()
        assert await link.send("EXISTS", keys.private_mailbox(life.worker)) == 0


async def test_judges_hand_back_more_than_one_script_moves(settings, link, run):
    assert membership.HANDBACK_BATCH < 150
    other = Connection(settings, "judge")
    await other.connect()
    judge = Membership(settings, other, {"role": "r", "host": "h", "pid": 1, "mailboxes": [BOX]})
    await Mailboxes([BOX], keys).create(link)
    await judge.begin()
    await enter(link, "a")
    await send(link, 0, ["a"], calls=150)
    await link.send("DEL", keys.alive("a"))
    async with asyncio.timeout(10):
        while await link.send("XLEN", RETRY) < 150:
            await judge.renew()
            await judge.sweep()
            await asyncio.sleep(0.1)
    assert await link.send("EXISTS", keys.private_mailbox("a"), keys.private) == 0
    await judge.leave()
    await other.close()
