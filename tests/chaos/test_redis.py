"""Redis dies, forgets, cannot be reached, is full: nobody is declared dead for it, and every sample ends once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from gymq.process.embedded_redis import EmbeddedRedis
from gymq.settings import Settings
from tests.support import rollouts
from tests.support.proxy import Proxy
from tests.support.redis_server import leaked_keys
from tests.support.tiers import heavy
from tests.support.waiting import wait_until

from .checker import check
from .driver import FULL, Driver, until_some
from .report import note

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(200)]

#: Rollouts of a run: some ten seconds of work, or five.
ROWS = 200 if FULL else 100

#: Seconds that Redis cannot be reached: longer than any time-out of ours.
AWAY = 20.0

#: Seconds of the log's end that are cut off.
LOST = 1.5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A server of the test's own, which it may kill."""
    with EmbeddedRedis(tmp_path / "server", "127.0.0.1") as server:
        yield server
        with Redis.from_url(server.url) as client:
            wait_until(lambda: not leaked_keys(client), 5, "no key without a TTL")


@pytest.fixture
def driver(spawn, server: EmbeddedRedis, tmp_path: Path) -> Driver:
    """A run that has begun, with one worker of each role."""
    driver = Driver(spawn, Settings(redis_url=server.url, liveness=1.0), tmp_path, "redis", ROWS, 1)
    begin(driver)
    return driver


def begin(driver: Driver) -> None:
    driver.add_workers(each=1)
    driver.add_sinks()
    driver.add_producer(pause=0.01)
    until_some(driver, ROWS // 10)


def workers(driver: Driver) -> set[str]:
    """The names of the workers: one that was declared dead comes back under another."""
    return set(rollouts.registered(driver.settings))


def kill(server: EmbeddedRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive, 5, "the server's end")


def finish(driver: Driver, before: set[str], scenario: str, faults: int = 1) -> None:
    """Let the run end; every rollout stands once at each sink and is whole, and all workers are who they were."""
    driver.drive(limit=120, workers=False, others=False)
    verdict = check(driver)
    note(scenario, verdict, redis=faults)
    verdict.good()
    assert workers(driver) == before


@pytest.mark.slow
def test_redis_is_killed_three_times_and_comes_back(driver: Driver, server: EmbeddedRedis):
    before = workers(driver)
    for part in (2, 4, 6):
        until_some(driver, ROWS * part // 10)
        kill(server)
        time.sleep(1.5 * driver.settings.liveness)
        server.start()
    finish(driver, before, "Redis killed and started again", 3)


@pytest.mark.slow
@pytest.mark.parametrize("torn", [*heavy(0), 7], ids=["between two commands", "within a command"])
def test_redis_loses_the_end_of_its_log(driver: Driver, server: EmbeddedRedis, torn: int):
    before = workers(driver)
    for part in (2, 5):
        until_some(driver, ROWS * part // 10)
        (log,) = server.folder.glob("appendonlydir/*.incr.aof")
        size = log.stat().st_size
        time.sleep(LOST)
        kill(server)
        assert log.stat().st_size > size + torn, "nothing was written meanwhile"
        os.truncate(log, size + torn)
        server.start()
    finish(driver, before, f"Redis loses {LOST:g} s of its log, cut {'within' if torn else 'between'} commands", 2)
    for sink in ("sink-jsonl", "sink-parquet"):
        assert "Redis lost the last" in driver.places[sink].log.read_text()


@pytest.mark.heavy
def test_redis_loses_what_the_producer_wrote_last(spawn, server: EmbeddedRedis, tmp_path: Path):
    # Given a producer that has ended, and workers that are not there yet
    driver = Driver(spawn, Settings(redis_url=server.url, liveness=1.0), tmp_path, "redis", ROWS, 1)
    driver.add_producer()
    (log,) = server.folder.glob("appendonlydir/*.incr.aof")
    size = log.stat().st_size
    wait_until(lambda: driver.places["producer"].over, 30, "the producer's end")
    # When its last write is lost: that there are no more rows
    kill(server)
    os.truncate(log, log.stat().st_size - 20)
    assert log.stat().st_size > size
    server.start()
    # Then the same command brings it in order
    assert rollouts.status(driver.settings, "redis").state == "open"
    driver.add_producer()
    driver.add_workers(each=1)
    driver.add_sinks()
    finish(driver, workers(driver), "Redis loses the producer's last write")


@pytest.mark.heavy
def test_the_connection_is_cut_for_twenty_seconds(spawn, server: EmbeddedRedis, tmp_path: Path):
    parts = urlsplit(server.url)
    assert parts.port is not None
    proxy = Proxy(parts.port)
    through = server.url.replace(f":{parts.port}/", f":{proxy.port}/")
    driver = Driver(spawn, Settings(redis_url=through, liveness=1.0), tmp_path, "redis", ROWS, 1)
    begin(driver)
    before = workers(driver)
    proxy.cut()
    time.sleep(AWAY)
    proxy.mend()
    finish(driver, before, f"connections cut for {AWAY:g} s")


@pytest.mark.heavy
def test_redis_does_not_answer_for_twenty_seconds(driver: Driver, server: EmbeddedRedis):
    before = workers(driver)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(AWAY)
    os.kill(server.pid, signal.SIGCONT)
    finish(driver, before, f"Redis does not answer for {AWAY:g} s")


@pytest.mark.slow
def test_redis_is_full_for_a_while(driver: Driver, server: EmbeddedRedis):
    before = workers(driver)
    with Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1 << 20)  # less than it uses
        time.sleep(5)
        ended = rollouts.status(driver.settings, "redis").ended
        time.sleep(3)
        # Nothing is admitted and nothing ends.
        assert rollouts.status(driver.settings, "redis").ended == ended < ROWS
        client.config_set("maxmemory", 0)
    finish(driver, before, "Redis is full for 8 s")
