"""Fixtures of all tests: a server for each xdist worker, a clean database, real processes, and the search for leaks."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from redis import Redis
from redis.exceptions import ConnectionError

# So that `from tests.support.waiting import wait_until` works under --import-mode=importlib.
sys.path.insert(0, str(Path(__file__).parent.parent))

from gymq import plugins
from gymq.observe import logs
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.settings import Settings
from gymq.store.connection import Connection
from tests.support.farm import PLUGIN, Farm
from tests.support.redis_server import leaked_keys, left_by_done_runs
from tests.support.rollouts import linked
from tests.support.waiting import wait_until

#: Examples of each Hypothesis test, in percent of the full number; the same in each run, but for `full`. `search` is for
#: `make mutations`, which ends at the first example that fails.
for profile, percent in {"quick": 20, "ci": 50, "full": 100, "search": 600}.items():
    hypothesis.settings.register_profile(
        profile, max_examples=percent, derandomize=profile != "full", deadline=None, print_blob=True
    )
hypothesis.settings.load_profile(os.environ.get("GYMQ_HYPOTHESIS", "quick"))

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that returns the messages that gymq has logged, of events too, since it was last called."""
    logs.tell()
    for name in logs.OURS:
        caplog.set_level("INFO", name)

    def messages() -> list[str]:
        said = [record.getMessage() for record in caplog.records if record.name.partition(".")[0] in logs.OURS]
        caplog.clear()
        return said

    return messages


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The server of this xdist worker; at a port, as a shared one is."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), "127.0.0.1") as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> Iterator[str]:
    """The address of a server without data and with its own settings, whatever the last test did to it.

    Afterwards no run that is done may have left a key that never expires.
    """

    def cleaned() -> bool:
        redis_server.start()  # nothing happens if it runs
        try:
            with Redis.from_url(redis_server.url) as client:
                client.config_set("maxmemory", 0)
                client.config_set("min-replicas-to-write", 0)
                return bool(client.flushall())
        except ConnectionError:
            return False  # the last test killed it, and it is not quite dead

    wait_until(cleaned)
    yield redis_server.url
    if redis_server.alive:
        with Redis.from_url(redis_server.url) as client, suppress(ConnectionError):
            left = left_by_done_runs(client)
            assert not left, f"runs that are done have left keys without a TTL: {', '.join(left)}"


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Settings for the server of `redis_url`, with a liveness that a test can wait for."""
    return Settings(redis_url=redis_url, liveness=1.0)


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to it."""
    async with linked(settings) as connection:
        yield connection


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest, redis_url: str) -> Iterator[None]:
    """Fail if the test leaves keys that never expire; `@pytest.mark.lasting("pattern", ...)` allows further ones."""
    yield
    allowed = tuple(pattern for marker in request.node.iter_markers("lasting") for pattern in marker.args)
    with Redis.from_url(redis_url) as client:
        # A run is done when its results are used; a worker may acknowledge its last mail a moment later.
        until = time.monotonic() + 3
        while (leaks := leaked_keys(client, allowed)) and time.monotonic() < until:
            time.sleep(0.1)
    assert not leaks, f"keys without a TTL are left: {', '.join(leaks)}"


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start real processes: `spawn(argv, env, **Popen arguments)`; all that descends from them is killed at the test's end.

    `env` comes on top of the environment of the tests.
    """
    started: list[subprocess.Popen[bytes]] = []
    # Descendants inherit it, whatever session they are in, and whether or not their parent is still there. A server
    # overwrites it with its title, but has the parent-death signal.
    mark = ("GYMQ_TEST_SPAWN", secrets.token_hex(8))

    def start(argv: Sequence[str], env: Mapping[str, str] | None = None, **arguments: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **(env or {}), mark[0]: mark[1]}
        process = subprocess.Popen(argv, env=environment, start_new_session=True, **arguments)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    for descendant in psutil.process_iter():
        with suppress(psutil.Error):
            if descendant.environ().get(mark[0]) == mark[1]:
                descendant.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make every heavy test slow as well."""
    for item in items:
        if item.get_closest_marker("heavy"):
            item.add_marker("slow")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker that only these fixtures read."""
    config.addinivalue_line("markers", "lasting(*patterns): keys that the test may leave without a TTL")


@pytest.fixture
def farm(spawn, settings, tmp_path, monkeypatch):
    """A small installation, to which the environments of `tests/support/plugin` are installed."""
    caches = (plugins.points, plugins.load, plugins.environment)
    monkeypatch.syspath_prepend(str(PLUGIN))
    for cached in caches:
        cached.cache_clear()
    yield Farm(spawn, settings, tmp_path)
    for cached in caches:
        cached.cache_clear()
