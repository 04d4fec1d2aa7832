"""Producing: rows enter a run once, bad ones are told, and a Celery client that knows only a name can enqueue too."""

from __future__ import annotations

import asyncio
import threading
import time

import msgspec
import pytest
from celery import Celery

from gymq.client.producer import produce as produce_rows
from gymq.errors import DataError, RunClosed, ServerUnreachable, UsageError
from gymq.ingest.row_parser import parse_row
from gymq.settings import Settings
from gymq.store import task_ledger
from gymq.store.runs import RunConfig, cancel, close
from gymq.store.task_ledger import CHUNK_ROWS, TaskLedger
from gymq.wire.task import Task, encode_task
from tests.support.rollouts import BORN, Pretender, Workers, ask, make_run, produce, status, weather, with_link
from tests.support.shard import keys
from tests.support.waiting import wait_until

CONFIG = RunConfig("r", "weather", "tool", "scripted")


def test_twice_enqueues_nothing_twice(settings):
    rows = weather(CHUNK_ROWS + 10)
    first = produce(settings, CONFIG, rows, last=False)
    assert (first.rows, first.known, first.bad) == (CHUNK_ROWS + 10, 0, 0)
    again = produce(settings, CONFIG, rows)
    assert (again.rows, again.known, again.bad) == (CHUNK_ROWS + 10, CHUNK_ROWS + 10, 0)
    # And a third time, though the run is closed now
    assert produce(settings, CONFIG, rows).known == CHUNK_ROWS + 10
    assert (status(settings, "r").rows, status(settings, "r").state) == (CHUNK_ROWS + 10, "closed")


def test_a_producer_that_was_broken_off_goes_on(settings):
    # Given a source that breaks in its third chunk
    def rows(whole: bool):
        for i, row in enumerate(weather(3 * CHUNK_ROWS)):
            if i == 2 * CHUNK_ROWS + 5 and not whole:
                raise OSError("the disk broke")
            yield row

    with pytest.raises(OSError, match="the disk broke"):
        produce(settings, CONFIG, rows(False))
    assert (status(settings, "r").rows, status(settings, "r").state) == (2 * CHUNK_ROWS, "open")
    # When the same is produced again
    made = produce(settings, CONFIG, rows(True))
    # Then only the rest enters
    assert (made.rows, made.known) == (3 * CHUNK_ROWS, 2 * CHUNK_ROWS)
    assert status(settings, "r").rows == 3 * CHUNK_ROWS


def test_other_rows_under_another_name_are_added(settings):
    produce(settings, CONFIG, weather(3), source="a", last=False)
    produce(settings, CONFIG, weather(3), source="b")
    assert status(settings, "r").rows == 6


def test_a_source_that_has_changed_is_refused_and_not_passed_over(settings):
    produce(settings, CONFIG, weather(5), last=False)
    with pytest.raises(UsageError, match=r"rows: rows 1 to 7: run 'r' has 5 good rows with digest .*, and these are 7 with"):
        produce(settings, CONFIG, weather(7))


def test_a_loop_that_produces_other_rows_under_one_source_is_told_and_under_its_own_each_step_enters(settings, monkeypatch):
    monkeypatch.setenv("GYMQ_REDIS_URL", settings.redis_url)
    first, second = weather(3), weather(6)[3:]
    produce_rows(CONFIG, first, last=False)
    # When as many other rows come under the same name
    with pytest.raises(
        UsageError, match=r"script: rows 1 to 3: run 'r' has 3 good rows with digest \w{12} .* 3 with digest \w{12}"
    ):
        produce_rows(CONFIG, second, last=False)
    assert status(settings, "r").rows == 3
    # Then the same ones are known, and the others enter under another name
    assert produce_rows(CONFIG, first, last=False).known == 3
    assert produce_rows(CONFIG, second, source="step 2").known == 0
    assert status(settings, "r").rows == 6


async def test_a_chunk_with_other_rows_is_refused_by_the_ledger_too(connection):
    # As a Celery client writes it, which has not looked before
    run = await make_run(connection)
    book = TaskLedger([connection], "r")
    await book.write("mine:0", [Task("a", "weather", [])])
    with pytest.raises(UsageError, match="mine:0: run 'r' has 1 good rows"):
        await book.write("mine:0", [Task("b", "weather", [])])
    assert await book.write("mine:0", [Task("a", "weather", [])]) == 0
    assert await connection.send("HGET", keys.run(run.config.name), "rows") == b"1"


def test_bad_rows_are_told_counted_and_passed_over(settings):
    said: list[str] = []
    one, two, three = weather(3)
    rows = [one, two, b"not json", b"[1]", {"no": "prompt"}, {"prompt": "?", "environment": "nowhere"}, three]
    made = produce(settings, CONFIG, rows, on_bad=said.append)
    assert (made.rows, made.bad) == (3, 4)
    assert [line.split(": ")[0] for line in said] == ["rows:3", "rows:4", "rows:5", "rows:6"]
    assert status(settings, "r").rows == 3
    assert ask(settings, "HGET", keys.run("r"), "bad") == b"4"
    # And twice is once, bad rows or not
    assert produce(settings, CONFIG, rows, on_bad=said.append).known == 3


def test_back_pressure_holds_a_producer_until_rollouts_end(settings, monkeypatch):
    # Given a ledger that holds two chunks
    tasks = [parse_row(row, where="", environment="weather", known=["weather"]) for row in weather(2 * CHUNK_ROWS)]
    monkeypatch.setattr(task_ledger, "MAX_BYTES", sum(len(encode_task(task)) for task in tasks))
    progress: list[int] = []
    producing = threading.Thread(
        target=produce,
        args=(settings, msgspec.structs.replace(CONFIG, created=BORN), weather(4 * CHUNK_ROWS)),
        kwargs={"on_progress": lambda made: progress.append(made.rows)},
        daemon=True,
    )
    producing.start()
    wait_until(lambda: progress == [CHUNK_ROWS, 2 * CHUNK_ROWS])
    time.sleep(3 * task_ledger.FULL_RETRY_PAUSE)
    assert progress == [CHUNK_ROWS, 2 * CHUNK_ROWS]

    # When rollouts end
    async def end_all(connection) -> None:
        run = Pretender(connection, CONFIG)
        while producing.is_alive():
            await run.admit()
            if run.live:
                await run.end(*run.live)
            await asyncio.sleep(0.05)

    with_link(settings, end_all)
    # Then it goes on to the end
    assert progress == [CHUNK_ROWS, 2 * CHUNK_ROWS, 3 * CHUNK_ROWS, 4 * CHUNK_ROWS]
    assert status(settings, "r").rows == 4 * CHUNK_ROWS


def test_a_run_that_is_over_or_another_one_is_refused(settings):
    produce(settings, CONFIG, weather(2), last=False)
    with pytest.raises(UsageError, match="exists with samples=1, not 2"):
        produce(settings, RunConfig("r", "weather", "tool", "scripted", samples=2), weather(2))
    with_link(settings, lambda connection: close(connection, "r"))
    with pytest.raises(RunClosed, match="takes no more rows"):
        produce(settings, CONFIG, weather(2), source="more")
    with_link(settings, lambda connection: cancel(connection, "r"))
    with pytest.raises(RunClosed):
        produce(settings, CONFIG, weather(2))


def test_no_server_is_one_line():
    with pytest.raises(ServerUnreachable, match="Redis cannot be reached"):
        produce(Settings(redis_url="redis://127.0.0.1:1/0"), CONFIG, weather(1))


def test_an_outage_is_told_and_the_same_again_goes_on(settings, redis_server):
    # Given a producer whose server goes away while it waits for rows
    def rows():
        yield from weather(CHUNK_ROWS)
        redis_server.stop()
        yield from weather(CHUNK_ROWS)[:0]

    with pytest.raises(ServerUnreachable, match="run the same command again"):
        produce(settings, CONFIG, rows())
    redis_server.start()
    made = produce(settings, CONFIG, weather(CHUNK_ROWS))
    assert (made.rows, made.known, status(settings, "r").state) == (CHUNK_ROWS, CHUNK_ROWS, "closed")


def test_the_message_goes_to_the_server_of_the_settings(settings):
    produce(settings, CONFIG, weather(CHUNK_ROWS + 1))
    assert ask(settings, "LLEN", "gymq.rollouts") == 2


def test_a_script_produces_and_bad_rows_raise(settings, monkeypatch):
    monkeypatch.setenv("GYMQ_REDIS_URL", settings.redis_url)
    assert produce_rows(CONFIG, weather(3), last=False).rows == 3
    with pytest.raises(DataError, match="more:2: has neither prompt nor messages"):
        produce_rows(CONFIG, [{"prompt": "?"}, {}], source="more")


def test_consumers_are_declared_with_the_rows(settings):
    produce(settings, CONFIG, weather(1), consumers=["trainer", "sink"])
    assert status(settings, "r").unread == {"sink": 0, "trainer": 0}


def test_a_foreign_celery_client_enqueues_rows_which_are_rolled_out(spawn, settings, tmp_path):
    # Given workers, an open run, and a client that has never heard of gymq
    workers = Workers(spawn, settings, tmp_path).start_all()
    produce(settings, CONFIG, weather(1), consumers=["sink"], last=False)
    client = Celery("foreign", broker=settings.redis_url, set_as_current=False)
    # When it sends rows, one chunk twice, one with a bad row, one for a run that does not exist
    for run, chunk, rows in (
        ("r", "mine:0", weather(3)),
        ("r", "mine:0", weather(3)),
        ("r", "bad:0", [*weather(2), {"no": "prompt"}]),
        ("nowhere", "mine:0", weather(2)),
        ("r", "mine:1", weather(2)),
    ):
        client.send_task("gymq.enqueue", kwargs={"run": run, "chunk": chunk, "rows": rows}, queue="gymq.rollouts", priority=9)
    client.close()
    # Then what is good is rolled out, once; a chunk with a bad row is refused whole
    wait_until(lambda: status(settings, "r").ended == 6, 20)
    wait_until(lambda: "bad:0:3" in workers.log("agent0") and "no run 'nowhere'" in workers.log("agent0"), 10)
    time.sleep(0.5)
    found = status(settings, "r")
    assert (found.rows, found.ended, found.by_status) == (6, 6, {"completed": 6})
    workers.stop()
