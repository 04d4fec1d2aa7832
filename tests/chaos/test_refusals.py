"""Redis refuses for a while: no process ends for it, no worker is declared dead, and every sample ends once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from gymq.process.embedded_redis import EmbeddedRedis
from gymq.settings import Settings
from tests.support import rollouts
from tests.support.servers import free_port
from tests.support.waiting import wait_until

from .checker import check
from .driver import FULL, Driver, until_some
from .report import note

pytestmark = [pytest.mark.chaos, pytest.mark.heavy, pytest.mark.timeout(200)]

#: Rollouts of a run.
ROWS = 100 if FULL else 40

#: Makes a server refuse, by a client and its address; returns what ends that.
Refusal = Callable[[Redis, str], Callable[[], object]]

#: Seconds of each refusal: several times the liveness.
AWAY = 6.0 if FULL else 4.0


@pytest.fixture
def driver(spawn, tmp_path: Path):
    """A run that has begun, with one worker of each role, on a server of its own."""
    with EmbeddedRedis(tmp_path / "server", "127.0.0.1") as server:
        driver = Driver(spawn, Settings(redis_url=server.url, liveness=1.0), tmp_path, "refused", ROWS, 1)
        driver.add_workers(each=1)
        driver.add_sinks()
        driver.add_producer(pause=0.01)
        until_some(driver, ROWS // 10)
        yield driver


def no_replicas(client: Redis, url: str) -> Callable[[], object]:
    """Too few replicas for a write: NOREPLICAS."""
    client.config_set("min-replicas-to-write", 1)
    return lambda: client.config_set("min-replicas-to-write", 0)


def no_snapshot(client: Redis, url: str) -> Callable[[], object]:
    """A snapshot that could not be written: MISCONF."""
    before = client.config_get("save")["save"]
    folder = Path(client.config_get("dir")["dir"]) / client.config_get("dbfilename")["dbfilename"]
    folder.unlink(missing_ok=True)
    folder.mkdir()  # the finished snapshot cannot take its name
    client.config_set("save", "3600 100000")
    client.config_set("stop-writes-on-bgsave-error", "yes")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10, "the snapshot to fail")

    def mend() -> None:
        folder.rmdir()
        client.config_set("stop-writes-on-bgsave-error", "no")
        client.config_set("save", before)

    return mend


def busy(client: Redis, url: str) -> Callable[[], object]:
    """A script that does not end: BUSY."""
    client.config_set("busy-reply-threshold", 100)

    def spin() -> None:
        with Redis.from_url(url) as other, suppress(RedisError):  # it is killed
            other.eval("while true do end", 0)

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()

    def mend() -> None:
        while thread.is_alive():
            with suppress(ResponseError):  # it has not begun, or has ended
                client.script_kill()
            thread.join(0.1)

    return mend


def read_only(client: Redis, url: str) -> Callable[[], object]:
    """A failover that has gone wrong for a while: the server is a replica of none that is there. READONLY."""
    client.replicaof("127.0.0.1", free_port())
    return lambda: client.replicaof("NO", "ONE")


REFUSALS = {"NOREPLICAS": no_replicas, "MISCONF": no_snapshot, "BUSY": busy, "READONLY": read_only}


@pytest.mark.parametrize("refuse", REFUSALS.values(), ids=REFUSALS.keys())
def test_redis_refuses_for_a_while(driver: Driver, refuse: Refusal, request):
    # Given a run that has begun
    workers = set(rollouts.registered(driver.settings))
    starts = {name: place.starts for name, place in driver.places.items()}
    # When Redis refuses twice, and answers again
    with Redis.from_url(driver.settings.redis_url) as client:
        for part in (2, 5):
            until_some(driver, ROWS * part // 10)
            mend = refuse(client, driver.settings.redis_url)
            time.sleep(AWAY)
            mend()
    driver.drive(limit=120, workers=False, others=False)
    # Then every rollout is whole, all workers are who they were, and no process was started again
    verdict = check(driver)
    note(f"Redis refuses for {AWAY:g} s: {request.node.callspec.id}", verdict, redis=2)
    verdict.good()
    assert set(rollouts.registered(driver.settings)) == workers
    assert {name: place.starts for name, place in driver.places.items()} == starts
