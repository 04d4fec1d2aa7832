"""Who is proposed for a call: the worker that knows the rollout, where its group is, and others that are looked at."""

from __future__ import annotations

from collections import Counter

import msgspec

from gymq.runtime.affinity import CHOICES, NEVER_LEAVE, WORKER_MARGIN, AffinityRouter

BOX = "model:m"


def routes(count: int, box: str = BOX) -> AffinityRouter:
    flat = [part for n in range(count) for part in (b"w%d" % n, msgspec.json.encode([box, "other"]))]
    return AffinityRouter([*flat, b"draining", b"", b"forged", b"{"])


def test_nobody_is_proposed_where_nobody_has_a_private_mailbox():
    assert AffinityRouter().conversation(BOX, "w0", "r.0", 4) == ([], 0)
    assert routes(3).conversation("model:else", "w0", "r.0", 4) == ([], 0)
    assert AffinityRouter().session(BOX, "w0", "r.0.0", 4) == ([], 0)
    assert not AffinityRouter().knows(BOX)
    assert routes(1).knows(BOX)


def test_who_drains_and_what_no_worker_wrote_is_passed_over():
    proposed = {worker for n in range(50) for worker in routes(3).conversation(BOX, "", f"r.{n}", 1)[0]}
    assert proposed == {"w0", "w1", "w2"}


def test_a_conversation_stays_with_its_owner_up_to_the_margin():
    for _ in range(20):
        workers, margin = routes(9).conversation(BOX, "w4", "r.0", 4)
        assert workers[0] == "w4"
        assert len(set(workers)) == 1 + CHOICES
        assert margin == WORKER_MARGIN


def test_the_only_replica_is_proposed_alone():
    assert routes(1).conversation(BOX, "w0", "r.0", 1) == (["w0"], WORKER_MARGIN)
    assert routes(1).conversation(BOX, "", "r.0", 1) == (["w0"], 0)


def test_a_group_begins_at_one_replica_and_groups_are_spread():
    found = routes(4)
    firsts = [found.conversation(BOX, "", f"r.{n}", 8)[0][0] for n in range(400)]
    assert firsts == [found.conversation(BOX, "gone", f"r.{n}", 8)[0][0] for n in range(400)]
    assert all(60 <= count <= 140 for count in Counter(firsts).values())
    assert found.conversation(BOX, "", "r.0", 8)[1] == WORKER_MARGIN
    assert found.conversation(BOX, "", "r.0", 1)[1] == 0


def test_a_replica_that_goes_moves_only_its_own_groups():
    before = [routes(4).conversation(BOX, "", f"r.{n}", 2)[0][0] for n in range(200)]
    after = [routes(3).conversation(BOX, "", f"r.{n}", 2)[0][0] for n in range(200)]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "w3")


def test_a_session_is_never_left_for_load():
    assert routes(5).session(BOX, "w2", "r.0.0", 3) == (["w2"], NEVER_LEAVE)


def test_a_session_that_nobody_has_is_made_by_whoever_has_room_but_by_one():
    found = routes(5)
    assert found.session(BOX, "", "r.0.0", 1) == ([], 0)
    workers, margin = found.session(BOX, "gone", "r.0.0", 2)
    assert len(set(workers)) == 1 + CHOICES
    assert margin == 0
