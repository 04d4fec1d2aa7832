"""Cancelling with real workers: queued work and calls in flight stop, and what was opened is closed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import psutil
import pytest

from gymq.store import runs
from gymq.store.runs import RunConfig
from gymq.wire.ids import PartId
from tests.support import rollouts
from tests.support.farm import guest_rows, journal_lines, slow_rows
from tests.support.redis_server import running
from tests.support.shard import keys
from tests.support.waiting import wait_until


class Endpoint:
    """A model's server that takes 30 s for an answer, and notes when its callers hang up."""

    def __init__(self) -> None:
        self.waiting = 0
        self.aborted = 0
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=1000)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await asyncio.sleep(600)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if head.startswith(b"post"):
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r")[0]))
            self.waiting += 1
            try:
                async with asyncio.timeout(30):
                    await reader.read()
                self.aborted += 1
            except (TimeoutError, OSError):
                pass
            self.waiting -= 1
        writer.close()


def pending(farm) -> int:
    """Messages that any worker holds."""
    held = 0
    for info in farm.registered().values():
        for box in info["mailboxes"]:
            held += (
                farm.ask("XPENDING", keys.mailbox(box), keys.GROUP)[0] + farm.ask("XPENDING", keys.retry(box), keys.GROUP)[0]
            )
    return held


def test_requests_in_flight_are_aborted_and_the_run_ends(farm, tmp_path, no_leaks):
    # Given 500 rollouts whose requests wait at a slow endpoint
    endpoint = Endpoint()
    farm.start("agent")
    farm.start("resource", environments="weather")
    farm.start("model", model="openai:m", base_url=endpoint.url, concurrency=512)
    farm.wait_for(3)
    farm.produce(RunConfig("slow", "weather", "tool", "openai:m", concurrency=500), rollouts.weather(600))
    wait_until(lambda: endpoint.waiting == 500, 60, "500 requests in flight")
    # When the run is cancelled
    farm.sink("slow", tmp_path / "out.jsonl")
    began = time.monotonic()
    assert farm.cancel("slow") == 500
    # Then the endpoint sees its callers hang up, and the run is done
    wait_until(lambda: endpoint.aborted == 500, 15, "requests to be aborted")
    aborted = time.monotonic() - began
    wait_until(lambda: farm.status("slow").state == "done", 20, "the run to be done")
    print(f"aborted after {aborted:.1f} s, done after {time.monotonic() - began:.1f} s")
    assert aborted < 10
    assert farm.status("slow").by_status == {"cancelled": 500}
    wait_until(lambda: pending(farm) == 0, 5, "the mail of the calls to be acknowledged")


@pytest.mark.slow
def test_calls_that_wait_in_a_mailbox_are_not_begun_once_their_run_is_cancelled(farm, tmp_path, no_leaks):
    # Given two calls at work, and others behind them for longer than a second
    journal = tmp_path / "journal"
    farm.start("agent")
    farm.start("model", model="scripted")
    farm.start("resource", environments="slow", concurrency=2)
    farm.wait_for(3)
    rows = slow_rows(journal, 20, [[["step", {"number": 1}]]], seconds=60)
    farm.produce(RunConfig("queued", "slow", "tool", "scripted"), rows)
    wait_until(lambda: len(journal_lines(journal)) == 2, 20, "two calls at work")
    time.sleep(1.5)
    # When the run is cancelled
    farm.cancel("queued")
    found = farm.finish("queued", tmp_path / "out.jsonl", 20)
    # Then those two made room, and of the others none began
    wait_until(lambda: pending(farm) == 0 and farm.ask("XLEN", keys.mailbox("resource:slow")) == 0, 10, "empty mailboxes")
    assert {record["status"] for record in found} == {"cancelled"}
    assert len(journal_lines(journal)) == 2


@pytest.mark.slow
def test_groups_and_rollouts_are_cancelled_while_their_run_goes_on(farm, tmp_path, no_leaks):
    # Given a run of which two groups of three have begun
    journal = tmp_path / "journal"
    farm.start("agent")
    farm.start("model", model="scripted")
    farm.start("resource", environments="slow")
    farm.wait_for(3)
    rows = slow_rows(journal, 6, [[["step", {"number": 1}]]], seconds=3)
    farm.produce(RunConfig("some", "slow", "tool", "scripted", samples=3, concurrency=6), rows)
    wait_until(lambda: len(journal_lines(journal)) == 6, 20, "six calls at work")
    # When a rollout and a group in flight are cancelled, and a rollout and a group that did not begin
    cancelled = [PartId(0, 1), PartId(1), PartId(3, 0), PartId(4)]
    flying, waiting = rollouts.with_link(farm.settings, lambda connection: runs.cancel_some(connection, "some", cancelled))
    assert (flying, waiting) == (4, 4)
    found = {record["rollout_id"]: record for record in farm.finish("some", tmp_path / "out.jsonl", 60)}
    # Then exactly those ended so, the others as ever, and all groups are whole
    ids = {"some.0.1", "some.3.0"} | {f"some.{row}.{sample}" for row in (1, 4) for sample in range(3)}
    assert {rid for rid, record in found.items() if record["status"] == "cancelled"} == ids
    assert Counter(record["status"] for record in found.values()) == {"cancelled": 8, "completed": 10}
    # and those that had not begun never called anybody
    assert found["some.0.1"]["error"]["message"] == "the rollout was cancelled"
    assert found["some.1.0"]["error"]["message"] == "the group was cancelled"
    assert len(found["some.0.1"]["messages"]) > len(found["some.3.0"]["messages"]) == 1
    assert all(found[rid]["calls"] == [] for rid in ids if rid.split(".")[1] in "34")
    assert farm.status("some").ended == 18


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["wait", "block"])
def test_what_was_opened_is_closed_when_its_rollout_is_cancelled(farm, tmp_path, no_leaks, tool):
    # Given rollouts in a tool that takes long
    journal = tmp_path / "journal"
    farm.start("agent")
    farm.start("model", model="scripted")
    farm.start("resource", environments="guest")
    farm.wait_for(3)
    farm.produce(RunConfig("guests", "guest", "tool", "scripted"), guest_rows(journal, 4, tool, 20))
    wait_until(lambda: sum(line[1] == tool for line in journal_lines(journal)) == 4, 20, "tools at work")
    # When the run is cancelled
    farm.cancel("guests")
    found = farm.finish("guests", tmp_path / "out.jsonl", 15)
    # Then each was closed, once, and ended as cancelled with its messages so far
    assert {record["status"] for record in found} == {"cancelled"}
    assert sorted(line[0] for line in journal_lines(journal) if line[1] == "close") == ["t0", "t1", "t2", "t3"]
    assert {len(record["messages"]) for record in found} == {2}
    assert {record["calls"][-1]["kind"] for record in found} == {"close"}
    # and the places of the tools were freed, though a thread cannot be stopped
    wait_until(lambda: pending(farm) == 0, 10, "places to be freed")
    if tool == "wait":
        assert not any(line[1] == "waited" for line in journal_lines(journal))


@pytest.mark.slow
def test_isolated_calls_are_killed_with_their_children(farm, tmp_path, no_leaks):
    # Given two isolated calls at work, each with a child, and two that wait for an executor
    journal = tmp_path / "journal"
    farm.start("agent")
    farm.start("model", model="scripted")
    farm.start("resource", environments="guest")
    executor = farm.start("executor", processes=2)
    farm.wait_for(3)
    farm.produce(RunConfig("isolated", "guest", "tool", "scripted"), guest_rows(journal, 4, "rest"))
    wait_until(lambda: sum(line[1] == "rest" for line in journal_lines(journal)) == 2, 30, "two calls at work")
    pids = [int(pid) for line in journal_lines(journal) if line[1] == "rest" for pid in line[2:]]
    # When the run is cancelled
    farm.cancel("isolated")
    farm.finish("isolated", tmp_path / "out.jsonl", 15)
    # Then the processes are gone, the others never began, and the executor works on
    wait_until(lambda: not any(map(running, pids)), 10, "processes to be killed")
    time.sleep(1)
    assert sum(line[1] == "rest" for line in journal_lines(journal)) == 2
    assert executor.poll() is None
    wait_until(lambda: not farm.ask("EXISTS", keys.isolated), 5, "no call to be known to an executor")
    farm.produce(RunConfig("after", "guest", "tool", "scripted"), guest_rows(journal, 2, "rest", 0.1))
    assert {record["status"] for record in farm.finish("after", tmp_path / "after.jsonl", 30)} == {"completed"}
    assert psutil.Process(executor.pid).is_running()


@pytest.mark.slow
def test_a_pause_is_obeyed_by_a_worker_that_was_down_when_it_was_said(farm, tmp_path, no_leaks):
    # Given a pause, said when no worker ran, and another of one run
    rollouts.with_link(
        farm.settings, lambda connection: runs.create(connection, RunConfig("two", "weather", "tool", "scripted"))
    )
    farm.ask("SET", keys.paused, 1)
    rollouts.with_link(farm.settings, lambda connection: runs.pause(connection, "two", True))
    farm.produce(RunConfig("one", "weather", "tool", "scripted"), rollouts.weather(3))
    farm.produce(RunConfig("two", "weather", "tool", "scripted"), rollouts.weather(3))
    # When workers start, then they admit nothing
    farm.start("agent")
    farm.start("model", model="scripted")
    farm.start("resource", environments="weather")
    farm.wait_for(3)
    time.sleep(2.5)
    assert [farm.status(name).admitted for name in ("one", "two")] == [0, 0]
    # When it is said that they go on, then all runs do but the one that is paused by itself
    farm.ask("DEL", keys.paused)
    assert len(farm.finish("one", tmp_path / "one.jsonl")) == 3
    time.sleep(1.5)
    assert farm.status("two").admitted == 0
    # and that one when it is said of it
    rollouts.with_link(farm.settings, lambda connection: runs.pause(connection, "two", False))
    assert len(farm.finish("two", tmp_path / "two.jsonl")) == 3
