"""Some processes reach Redis and others do not, and some have other clocks: every sample ends once all the same."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from gymq.process.embedded_redis import EmbeddedRedis
from gymq.settings import Settings
from tests.support.proxy import Proxy

from .checker import check
from .driver import FULL, Driver, until_some
from .report import note
from .test_chaos import SEED

pytestmark = [pytest.mark.chaos, pytest.mark.heavy, pytest.mark.timeout(400)]

#: Rollouts of a run.
ROWS = 200 if FULL else 60

#: Clocks of the workers of one kin, as libfaketime takes them: over an hour ahead, and a day behind.
CLOCKS = {"ahead": "+65m", "behind": "-1d"}


def faketime() -> Path | None:
    """The library that shifts the clock of a process; None: it is not installed."""
    spec = find_spec("libfaketime")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.rglob("libfaketime.so.1"))
    return found[0] if found else None


@pytest.fixture
def server(tmp_path: Path):
    """A server of the test's own, with an address that a proxy may stand before."""
    with EmbeddedRedis(tmp_path / "server", "127.0.0.1") as server:
        yield server


def test_half_of_the_workers_lose_redis_now_and_then(spawn, server: EmbeddedRedis, tmp_path: Path):
    # Given one worker of each role that reaches Redis by a proxy, and one that reaches it directly
    driver = Driver(spawn, Settings(redis_url=server.url, liveness=1.0), tmp_path, "parted", ROWS, SEED)
    port = urlsplit(server.url).port
    assert port is not None
    proxy = Proxy(port)
    through = msgspec.structs.replace(driver.settings, redis_url=server.url.replace(f":{port}/", f":{proxy.port}/"))
    driver.add_workers(1)
    driver.add_workers(1, "parted", through)
    driver.add_sinks()
    driver.add_producer(pause=0.01)
    # When the proxy is cut for shorter and longer than the liveness, with what its workers hold
    moments = random.Random(SEED)
    for part in range(1, 5):
        until_some(driver, ROWS * part // 8)
        proxy.cut()
        time.sleep(moments.uniform(0.2, 4.0))
        proxy.mend()
    # Then the run is done: its work was done by the others meanwhile, and what came late changed nothing
    driver.drive(limit=200, workers=False, others=False)
    verdict = check(driver)
    note("half of the workers cut off from Redis", verdict, SEED, partition=4)
    verdict.good()


@pytest.mark.skipif(faketime() is None, reason="libfaketime is not installed; `make chaos` installs it")
def test_clocks_that_differ_between_workers_change_nothing(spawn, server: EmbeddedRedis, tmp_path: Path):
    # Given workers with the right clock, some an hour ahead, and some a day behind
    driver = Driver(spawn, Settings(redis_url=server.url, liveness=2.0), tmp_path, "clocks", ROWS, SEED)
    driver.add_workers(1)
    for kin, clock in CLOCKS.items():
        shift = {"LD_PRELOAD": str(faketime()), "FAKETIME": clock}
        driver.add_workers(1, kin, env=shift | {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"})
    driver.add_sinks()
    # When a run is done by all of them, and some die
    driver.add_producer(pause=0.01)
    driver.drive(limit=200, others=False)
    # Then nothing is overdue, and nothing has failed, for a clock
    verdict = check(driver)
    note("clocks an hour ahead and a day behind", verdict, SEED)
    verdict.good()


def test_any_process_may_die_while_a_run_lies_on_two_shards(spawn, tmp_path: Path):
    with ExitStack() as stack:
        servers = [stack.enter_context(EmbeddedRedis(tmp_path / str(n), "127.0.0.1")) for n in range(2)]
        settings = Settings(redis_url=",".join(server.url for server in servers), liveness=1.0)
        driver = Driver(spawn, settings, tmp_path, "shards", ROWS, SEED)
        driver.add_workers()
        driver.add_sinks()
        driver.add_producer(pause=0.01)
        driver.drive(limit=250)
        verdict = check(driver)
        note("workers, sinks and the producer over two shards", verdict, SEED)
        verdict.good()
