"""`rediss://`: everything that gymq says to Redis, and Celery's part too, goes through TLS."""

from __future__ import annotations

import json
import sys

import pytest

from gymq.errors import ServerUnreachable
from gymq.settings import Settings
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig
from tests.support import rollouts
from tests.support.servers import TlsProxy
from tests.support.waiting import wait_until


@pytest.fixture
def proxy(redis_server, redis_url, tmp_path):
    """TLS before the suite's server, whose own port the processes of these tests do not know."""
    made = TlsProxy(tmp_path / "tls", int(redis_url.rpartition(":")[2].partition("/")[0]))
    yield made
    made.stop()


@pytest.fixture
def settings(proxy, redis_url) -> Settings:
    login = redis_url.removeprefix("redis://").rpartition("@")[0]
    return Settings(f"rediss://{login}@127.0.0.1:{proxy.port}/0?ssl_ca_certs={proxy.certificate}", liveness=1.0)


async def test_a_certificate_that_nobody_vouches_for_is_refused(settings):
    stranger = Connection(Settings(settings.redis_url.partition("?")[0]), "x")
    with pytest.raises(ServerUnreachable, match="certificate"):
        await stranger.connect()


@pytest.mark.slow
def test_a_run_with_an_isolated_call_and_an_enqueue_task_goes_through_tls(farm, settings, spawn, tmp_path):
    # Given workers that know the server by its rediss:// address only
    for role in ("agent", "model", "resource", "executor"):
        farm.start(role, model="scripted", environments="hostile")
    farm.wait_for(3)
    # When one row comes from a producer, and one in a task of a Celery client that is another process
    config = RunConfig("tls", "hostile", "tool", "scripted")
    row = {"prompt": "go", "calls": ["pid"]}
    rollouts.produce(settings, config, [{"id": "a", **row}], consumers=["sink"], last=False)
    send = f"from gymq.celery import app; app.send_task('gymq.enqueue', ['tls', 'chunk', {json.dumps([{'id': 'b', **row}])}])"
    assert spawn([sys.executable, "-c", send], settings.environment()).wait(30) == 0
    wait_until(lambda: farm.status("tls").ended == 2, 60, "both rollouts to end")
    # Then both are there
    assert farm.status("tls").by_status == {"completed": 2}
