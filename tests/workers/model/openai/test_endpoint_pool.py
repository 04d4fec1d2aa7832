"""Which of several servers gets a call: the policy by itself, and real servers of which some fail."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from gymq_workers.model.openai.backend import OpenAIBackend
from gymq_workers.model.openai.endpoint_pool import FIRST_REST, LONGEST_REST, EndpointPool

from gymq.errors import CallError, UsageError
from gymq.runtime.affinity import ENDPOINT_MARGIN, ENDPOINT_START_MARGIN
from gymq.wire.message import Message, decode_message
from tests.support.model_server import ask, servers
from tests.support.tiers import slow

NAMES = [f"http://host{i}:8000/v1" for i in range(4)]


def replicas(names: list[str] = NAMES, size: int = 100) -> EndpointPool:
    return EndpointPool(names, size, random.Random(1))


def test_a_conversation_stays_and_the_samples_of_a_group_begin_together():
    one = replicas()
    homes = {}
    for row in range(200):
        chosen = {one.choose(f"run.{row}.{sample}", 0.0) for sample in range(8) for _turn in range(3)}
        assert len(chosen) == 1
        homes[row] = chosen.pop()
    counts = Counter(homes.values())
    assert min(counts.values()) > 30, counts
    # Another worker, which has seen none of it, finds the same homes.
    other = replicas()
    assert {row: other.choose(f"run.{row}.0", 0.0) for row in range(200)} == homes


def test_a_server_that_leaves_takes_only_its_own_groups_along():
    four, three = replicas(), replicas(NAMES[:3])
    moved = 0
    for row in range(300):
        before, after = four.choose(f"run.{row}.0", 0.0), three.choose(f"run.{row}.0", 0.0)
        if before == 3:
            moved += 1
        else:
            assert after == before
    assert 40 < moved < 110


def test_new_conversations_leave_a_busy_home_sooner_than_those_that_are_there():
    one = replicas(NAMES[:2])
    home = one.choose("run.0.0", 0.0)
    for _ in range(ENDPOINT_START_MARGIN):
        one.began(home)
    assert one.choose("run.0.1", 0.0) == home
    one.began(home)
    assert one.choose("run.0.2", 0.0) == 1 - home
    assert one.choose("run.0.0", 0.0) == home
    for _ in range(ENDPOINT_MARGIN - ENDPOINT_START_MARGIN):
        one.began(home)
    assert one.choose("run.0.0", 0.0) == 1 - home
    # It stays where it went, now that its prefix is there.
    for _ in range(ENDPOINT_MARGIN):
        one.ended(home)
    assert one.choose("run.0.0", 0.0) == 1 - home


def test_one_large_group_spreads_over_all_servers():
    one = replicas()
    for sample in range(400):
        one.began(one.choose(f"run.0.{sample}", 0.0))
    assert max(one.load) - min(one.load) < 3 * ENDPOINT_START_MARGIN


def test_who_failed_is_left_alone_and_then_tried_by_one_call():
    one = replicas(NAMES[:2])
    home = one.choose("run.0.0", 0.0)
    for _ in range(5):
        one.failed(home, began=0.0, now=10.0)  # five calls that it had together are one failure
    assert one.choose("run.0.0", 10.0) == 1 - home
    assert not one.usable(home, 10.0 + FIRST_REST * 0.9)
    assert one.usable(home, 10.0 + FIRST_REST)
    assert one.choose("run.9.0", 10.0) == 1 - home
    one.began(home)
    assert not one.usable(home, 10.0 + FIRST_REST)
    one.failed(home, began=12.0, now=12.0)
    one.ended(home)
    assert not one.usable(home, 12.0 + FIRST_REST * 1.9)
    assert one.usable(home, 12.0 + FIRST_REST * 2)
    one.answered(home)
    assert one.usable(home, 12.0)
    for n in range(60):
        one.failed(home, began=100.0 * n, now=100.0 * n)
    assert one.usable(home, 5900.0 + LONGEST_REST)


def test_if_all_have_failed_one_that_this_call_has_not_tried_is_asked():
    one = replicas(NAMES[:3])
    for i in range(3):
        one.failed(i, 0.0, 0.0)
    assert one.choose("run.0.0", 0.0, tried={0, 2}) == 1
    assert one.choose("run.0.0", 0.0, tried={0, 1, 2}) in (0, 1, 2)


def test_only_so_many_conversations_are_remembered():
    one = replicas(size=10)
    for sample in range(50):
        one.choose(f"run.{sample}.0", 0.0)
    assert len(one._holders) == 10


# With servers


@pytest.mark.slow
async def test_the_turns_of_a_conversation_reach_one_server_and_groups_are_spread(backend):
    with servers((), (), ()) as urls:
        one = await backend(base_url=",".join(urls))

        async def converse(row: int, sample: int) -> set[str]:
            turns: list[Message | str] = ["Hello"]
            said = set()
            for _ in range(4):
                answer = await one.generate(ask(*turns, rollout=f"run.{row}.{sample}"))
                said.add(answer.model)
                turns += [decode_message(answer.message), "And?"]
            return said

        told = {row: set.union(*[await converse(row, sample) for sample in range(2)]) for row in range(30)}
    assert all(len(said) == 1 for said in told.values())
    assert len(set.union(*told.values())) == 3


@pytest.mark.parametrize("dead", ["503", *slow("killed")])
async def test_a_server_that_fails_loses_its_conversations_to_the_others_and_nothing_is_lost(backend, dead):
    flags = ("--fail-rate", "1", "--status", "503") if dead == "503" else ()
    with servers(flags, (), ()) as urls:
        if dead == "killed":
            urls[0] = "http://127.0.0.1:9/v1"
        one = await backend(base_url=", ".join(urls))
        answers = await asyncio.gather(*[one.generate(ask("Hello", rollout=f"run.{row}.0")) for row in range(200)])
    assert {answer.model for answer in answers} == {"server1", "server2"}
    assert sum(one._pool.load) == 0


async def test_a_server_that_hangs_is_left_after_one_time_out(backend):
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with listener:
        with servers(()) as urls:
            hanging = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
            one = await backend(base_url=f"{hanging},{urls[0]}", timeout=0.3)
            answers = [await one.generate(ask("Hello", rollout=f"run.{row}.0")) for row in range(20)]
        assert {answer.model for answer in answers} == {"server0"}
        await one.stop()


@pytest.mark.slow
async def test_a_server_that_comes_back_gets_calls_again(backend, monkeypatch):
    monkeypatch.setattr("gymq_workers.model.openai.endpoint_pool.FIRST_REST", 0.05)
    with servers(("--fail-rate", "1", "--status", "500", "--times", "3"), ()) as urls:
        one = await backend(base_url=",".join(urls))
        said: Counter[str] = Counter()
        for row in range(100):
            said[(await one.generate(ask("Hello", rollout=f"run.{row}.0"))).model] += 1
            await asyncio.sleep(0.01)
    assert said["server0"] > 10, said
    assert said.total() == 100


async def test_if_no_server_answers_the_call_ends_as_with_one(backend):
    one = await backend(base_url="http://127.0.0.1:9/v1,http://127.0.0.1:10/v1", retries=3)
    with pytest.raises(CallError, match=r"cannot reach 127.0.0.1:.*\(tried 4 times\)") as caught:
        await one.generate(ask("Hello"))
    assert caught.value.fault.kind == "model_unavailable"
    with pytest.raises(CallError, match=r"127.0.0.1:9 does not answer.*; 127.0.0.1:10 does not answer"):
        await one.probe()


def test_limits_are_of_each_server_and_a_list_that_makes_no_sense_is_refused():
    one = OpenAIBackend("m", {"base_url": "http://a/v1, http://b/v1", "rpm": 5})
    assert len({part.account() for part in one.limited()}) == 2
    for bases, words in [("http://a/v1,", "must look like"), ("http://a/v1,http://a/v1/", "names a server twice")]:
        with pytest.raises(UsageError, match=words):
            OpenAIBackend("m", {"base_url": bases})
