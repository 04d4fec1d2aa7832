"""Mail: nobody gets more than it asked for, what was handed back comes first, and what the dead held comes back."""

from __future__ import annotations

import msgspec
import pytest

from gymq.runtime import mailbox
from gymq.runtime.mailbox import Mailboxes
from gymq.store import scripts
from gymq.store.worker_registry import WorkerEntry
from tests.support.shard import keys

BOX = "resource:e"
STREAM, RETRY, ALONE = keys.mailbox(BOX), keys.retry(BOX), keys.suspects(BOX)


@pytest.fixture
async def boxes(connection, monkeypatch):
    """One mailbox, of a reader that does not wait long."""
    monkeypatch.setattr(mailbox, "BLOCK_MS", 20)
    boxes = Mailboxes([BOX], keys)
    await boxes.create(connection)
    return boxes


async def post(connection, *bodies, stream=STREAM, attempts: int | None = None) -> None:
    for body in bodies:
        await connection.send("XADD", stream, "*", "c", body, *(() if attempts is None else ("a", attempts)))


async def register(connection, worker: str, alive: bool = False) -> None:
    await connection.send("HSET", keys.workers, worker, msgspec.json.encode(WorkerEntry("resource", "h", 1, [BOX])))
    if alive:
        await connection.send("SET", keys.alive(worker), 1)


async def hand_back(connection, worker: str, most: int = 100, leaving: bool = False) -> int:
    return await connection.run(scripts.hand_back(worker, most, scripts.HandBackReason(leaving), [BOX]))


async def waiting(connection, stream=RETRY) -> list[list[bytes]]:
    return [fields for _, fields in await connection.send("XRANGE", stream, "-", "+")]


def bodies(mail) -> list[bytes]:
    return [one.fields[1] for one in mail]


# Taking.


@pytest.mark.parametrize("free", range(1, 13))
async def test_a_worker_never_gets_more_than_it_can_start(connection, boxes, free):
    # Given three mailboxes, full, with retries
    many = Mailboxes(["x", "y", "z"], keys)
    await many.create(connection)
    for name in many.names:
        await post(connection, *[b"m"] * 10, stream=keys.mailbox(name))
        await post(connection, *[b"r"] * 10, stream=keys.retry(name))
    # When a worker with some room takes mail, again and again
    batches = [len(await many.take(connection, "w", free)) for _ in range(4)]
    # Then it gets some each time, and never more
    assert all(1 <= batch <= free for batch in batches), batches


@pytest.mark.parametrize("free", [1, 2, 50])
async def test_what_was_handed_back_is_taken_first(connection, boxes, free):
    await post(connection, *[b"new"] * 20)
    await post(connection, b"again", stream=RETRY, attempts=1)
    mail = await boxes.take(connection, "w", free)
    assert bodies(mail)[0] == b"again"
    assert mail[0].attempt == 1


async def test_mail_is_taken_in_the_order_in_which_it_was_sent_and_by_one_worker_only(connection, boxes):
    await post(connection, b"1", b"2", b"3", b"4")
    first, second = await boxes.take(connection, "a", 4), await boxes.take(connection, "b", 4)
    assert bodies(first + second) == [b"1", b"2", b"3", b"4"]
    assert first and second


async def test_a_worker_with_room_for_one_reaches_all_its_mailboxes(connection, boxes, monkeypatch):
    # Given a worker with one place for many mailboxes, of which one alone has mail
    monkeypatch.setattr(mailbox, "BLOCK_IN_TURN", 1)
    many = Mailboxes(["u", "v", "w", "x"], keys)
    await many.create(connection)
    for name in many.names:
        await post(connection, name.encode(), stream=keys.mailbox(name))
        # When it reads
        found = [one async for one in _takes(many, connection, 1)]
        # Then it gets that mail at once
        assert found == [name.encode()]


async def _takes(boxes, connection, count):
    for _ in range(count):
        for one in await boxes.take(connection, "w", 1):
            yield one.fields[1]


async def test_a_busy_mailbox_does_not_starve_its_neighbour(connection, boxes):
    # Given a worker with room for one, and a mailbox that is never empty beside another with one message
    pair = Mailboxes(["busy", "quiet"], keys)
    await pair.create(connection)
    await post(connection, *[b"busy"] * 50, stream=keys.mailbox("busy"))
    await post(connection, b"quiet", stream=keys.mailbox("quiet"))
    # When it reads a few times, then the quiet one's turn comes
    found = [one async for one in _takes(pair, connection, 8)]
    assert b"quiet" in found


async def test_a_reader_waits_and_comes_back_empty_handed(connection, boxes):
    assert await boxes.take(connection, "w", 10) == []


async def test_mail_that_was_sent_before_anybody_read_the_mailbox_is_delivered(connection, monkeypatch):
    monkeypatch.setattr(mailbox, "BLOCK_MS", 20)
    await post(connection, b"early")
    boxes = Mailboxes([BOX], keys)
    await boxes.create(connection)
    await boxes.create(connection)  # another worker of the role
    assert bodies(await boxes.take(connection, "w", 10)) == [b"early"]


async def test_held_is_what_was_delivered_and_not_acknowledged(connection, boxes):
    # Given a worker that took four messages and acknowledged one
    await post(connection, b"1", b"2", b"3")
    await post(connection, b"again", stream=RETRY, attempts=2)
    mail = await boxes.take(connection, "w", 10)
    assert len(mail) == 4
    gone = next(one for one in mail if one.fields[1] == b"2")
    await connection.send("XACK", gone.stream, keys.GROUP, gone.id)
    await connection.send("XDEL", gone.stream, gone.id)
    # When it asks what it holds
    held = await boxes.held(connection, "w")
    # Then it is told the others, with how often they were delivered; and nobody else holds anything
    assert [(one.fields[1], one.attempt) for one in held] == [(b"again", 2), (b"1", 0), (b"3", 0)]
    assert await boxes.held(connection, "somebody") == []


async def test_mail_that_was_deleted_while_it_was_held_is_not_held(connection, boxes):
    await post(connection, b"1", b"2")
    mail = await boxes.take(connection, "w", 10)
    await connection.send("XDEL", STREAM, mail[0].id)
    assert bodies(await boxes.held(connection, "w")) == [b"2"]


# Handing back.


async def test_a_dead_workers_mail_comes_back_in_order_and_what_died_before_is_suspect(connection, boxes):
    # Given a dead worker that holds new mail, mail that somebody left behind in order and mail of one that died
    await register(connection, "w")
    await post(connection, b"left", stream=RETRY, attempts=0)
    await post(connection, b"old", stream=RETRY, attempts=1)
    await post(connection, b"1", b"2", b"3")
    await boxes.take(connection, "w", 10)
    # When it is handed back
    assert await hand_back(connection, "w") == 5
    # Then all of it waits, the suspect by itself, and nothing is left of the worker
    assert await waiting(connection, ALONE) == [[b"c", b"old", b"k", b"0", b"w", b"w", b"a", b"2"]]
    assert await waiting(connection) == [
        [b"c", b"left", b"a", b"1"],
        [b"c", b"1", b"a", b"1"],
        [b"c", b"2", b"a", b"1"],
        [b"c", b"3", b"a", b"1"],
    ]
    assert await connection.send("XLEN", STREAM) == 0
    assert await connection.send("HEXISTS", keys.workers, "w") == 0
    for stream in (STREAM, RETRY, ALONE):
        assert await connection.send("XINFO CONSUMERS", stream, keys.GROUP) == []


async def test_a_field_that_looks_like_attempts_is_not_taken_for_them(connection, boxes):
    await register(connection, "w")
    await post(connection, b"a")
    await boxes.take(connection, "w", 10)
    await hand_back(connection, "w")
    assert await waiting(connection) == [[b"c", b"a", b"a", b"1"]]
    assert [one.attempt for one in await boxes.take(connection, "w2", 10)] == [1]


async def test_a_suspect_is_read_alone_and_only_deaths_there_are_strikes(connection, boxes):
    # Given mail that kills whoever holds it
    alone = Mailboxes([BOX], keys, suspects_only=True)
    await post(connection, b"deadly", b"k", b"w")
    for death in range(2):
        await register(connection, f"w{death}")
        mail = await boxes.take(connection, f"w{death}", 10)
        assert [(one.attempt, one.strikes) for one in mail] == [(death, 0)] * 3
        assert await alone.take(connection, "nosy", 10) == []
        await hand_back(connection, f"w{death}")
    # When it dies on in quarantine, which leaves in order once, too
    assert await boxes.take(connection, "w", 10) == []
    seen = []
    for life, leaving in (("q0", False), ("q1", True), ("q2", False)):
        await register(connection, life)
        mail = await alone.take(connection, life, 3)
        seen.append([(bytes(one.fields[1]), one.attempt, one.strikes, one.victim) for one in mail])
        await hand_back(connection, life, leaving=leaving)
    # Then each death counts, and who was the last
    assert seen == [
        [(body, *marks) for body in (b"deadly", b"k", b"w")] for marks in ((2, 0, "w1"), (3, 1, "q0"), (3, 1, "q0"))
    ]
    assert [(one.attempt, one.strikes, one.victim) for one in await alone.take(connection, "q", 9)] == [(4, 2, "q2")] * 3
    assert await alone.held(connection, "q") and not await boxes.held(connection, "q")


async def test_a_worker_that_ends_of_a_defect_counts_as_dead(connection, boxes):
    await register(connection, "w", alive=True)
    await post(connection, b"1")
    await boxes.take(connection, "w", 10)
    assert await connection.run(scripts.hand_back("w", 100, scripts.HandBackReason.DEFECT, [BOX])) == 1
    assert await waiting(connection) == [[b"c", b"1", b"a", b"1"]]


async def test_suspects_that_nobody_has_taken_are_seen_and_who_reads_them_unregistered_too(connection, boxes):
    assert await connection.run(scripts.find_orphans([BOX])) == scripts.Orphans([], 0)
    await connection.send("XADD", ALONE, "*", "c", b"1", "k", 0, "w", "w", "a", 2)
    assert await connection.run(scripts.find_orphans([BOX])) == scripts.Orphans([], 1)
    await Mailboxes([BOX], keys, suspects_only=True).take(connection, "q", 1)
    assert await connection.run(scripts.find_orphans([BOX])) == scripts.Orphans(["q"], 0)
    assert await hand_back(connection, "q") == 1
    assert await connection.run(scripts.find_orphans([BOX])) == scripts.Orphans([], 1)


async def test_a_large_hand_back_is_done_in_batches_and_loses_nothing(connection, boxes):
    # Given a dead worker that holds ten messages
    await register(connection, "w")
    await post(connection, *[b"%d" % n for n in range(10)])
    await boxes.take(connection, "w", 20)
    # When four are handed back at a time
    moved = [await hand_back(connection, "w", 4) for _ in range(2)]
    # Then the worker stands in the registry as dead meanwhile, and is gone with the last batch
    assert (await connection.send("HGET", keys.workers, "w")).startswith(b"dead{")
    moved.append(await hand_back(connection, "w", 4))
    assert moved == [4, 4, 2]
    assert await connection.send("HEXISTS", keys.workers, "w") == 0
    assert [fields[1] for fields in await waiting(connection)] == [b"%d" % n for n in range(10)]


async def test_a_worker_that_is_alive_keeps_its_mail(connection, boxes):
    await register(connection, "w", alive=True)
    await post(connection, b"1")
    await boxes.take(connection, "w", 10)
    assert await hand_back(connection, "w") is None
    assert len(await boxes.held(connection, "w")) == 1
    assert not (await connection.send("HGET", keys.workers, "w")).startswith(b"dead")


async def test_a_worker_that_leaves_hands_back_although_it_is_alive(connection, boxes):
    await register(connection, "w", alive=True)
    await post(connection, b"1")
    await boxes.take(connection, "w", 10)
    assert await hand_back(connection, "w", leaving=True) == 1
    assert await connection.send("EXISTS", keys.alive("w")) == 0
    assert await waiting(connection) == [[b"c", b"1", b"a", b"0"]]


async def test_handing_back_twice_moves_nothing_twice(connection, boxes):
    await register(connection, "w")
    await post(connection, b"1")
    await boxes.take(connection, "w", 10)
    assert await hand_back(connection, "w") == 1
    assert await hand_back(connection, "w") == 0
    assert len(await waiting(connection)) == 1


async def test_what_others_hold_stays_with_them(connection, boxes):
    await register(connection, "w")
    await post(connection, b"1", b"2", b"3", b"4")
    mine, others = await boxes.take(connection, "w", 4), await boxes.take(connection, "other", 4)
    assert mine and others
    assert await hand_back(connection, "w") == len(mine)
    assert bodies(await boxes.held(connection, "other")) == bodies(others)


async def test_a_zombies_late_acknowledgement_does_no_harm(connection, boxes):
    # Given mail of a dead worker that another has taken
    await register(connection, "w")
    await post(connection, b"1")
    (mail,) = await boxes.take(connection, "w", 10)
    await hand_back(connection, "w")
    await boxes.take(connection, "heir", 10)
    # When the dead one acknowledges what it held
    assert await connection.send("XACK", mail.stream, keys.GROUP, mail.id) == 0
    assert await connection.send("XDEL", mail.stream, mail.id) == 0
    # Then the heir still holds it
    assert bodies(await boxes.held(connection, "heir")) == [b"1"]


async def test_mail_that_was_deleted_while_it_was_pending_is_not_made_up(connection, boxes):
    await register(connection, "w")
    await post(connection, b"1", b"2")
    mail = await boxes.take(connection, "w", 10)
    await connection.send("XDEL", STREAM, mail[0].id)
    await hand_back(connection, "w")
    assert [fields[1] for fields in await waiting(connection)] == [b"2"]
    assert (await connection.send("XPENDING", STREAM, keys.GROUP))[0] == 0


async def test_who_reads_without_standing_in_the_registry_is_found(connection, boxes):
    # Given a worker that was handed back, and took more under its old name; and one that is registered
    await register(connection, "known")
    await post(connection, b"1", b"2")
    await boxes.take(connection, "zombie", 1)
    await boxes.take(connection, "known", 1)
    # When orphans are looked for
    assert await connection.run(scripts.find_orphans([BOX])) == scripts.Orphans(["zombie"], 0)
    # Then what it holds can be handed back like any other's
    assert await hand_back(connection, "zombie") == 1
    assert await waiting(connection) == [[b"c", b"1", b"a", b"0"]]  # it lives: no second death
    assert await connection.run(scripts.find_orphans([BOX])) == scripts.Orphans([], 0)
