"""What a process answers at `/healthz` and `/readyz`."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from gymq.celery import actor_step
from gymq.celery.actor_step import ActorThread
from gymq.observe.health import Health
from gymq.observe.metrics_server import MetricsServer
from tests.support.waiting import wait_until


def status(server: MetricsServer, path: str) -> int:
    """What a server answers at a path."""
    try:
        with urllib.request.urlopen(server.address.replace("/metrics", path), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(("alive", "ready"), [(True, True), (True, False), (False, False)])
def test_it_says_whether_it_lives_and_is_ready(alive, ready):
    server = MetricsServer(CollectorRegistry(), "127.0.0.1", 0, health=Health(lambda: alive, lambda: ready))
    assert status(server, "/healthz") == (200 if alive else 503)
    assert status(server, "/readyz") == (200 if ready else 503)
    server.close()


def test_beside_them_it_serves_metrics():
    registry = CollectorRegistry()
    Gauge("seen", "Whether it was seen", registry=registry).set(1)
    server = MetricsServer(registry, "127.0.0.1", 0)
    assert (status(server, "/healthz"), status(server, "/readyz")) == (200, 200)
    with urllib.request.urlopen(server.address, timeout=5) as answer:
        assert b"seen 1.0" in answer.read()
    server.close()


class Stubborn:
    """An actor that holds up its loop until it is let go, and then lives on until it is stopped."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.stopped = threading.Event()

    async def main(self) -> None:
        await asyncio.sleep(0.05)
        self.let_go.wait(30)
        while not self.stopped.is_set():
            await asyncio.sleep(0.01)


def test_a_worker_lives_while_its_loop_turns(monkeypatch):
    monkeypatch.setattr(actor_step, "PULSE_INTERVAL", 0.01)
    monkeypatch.setattr(actor_step, "STILL_LIMIT", 0.5)
    monkeypatch.setattr(actor_step.interpreter, "tune", lambda: None)
    # Given a worker whose loop stands still
    actor = Stubborn()
    host = ActorThread(actor, 60, lambda: None)
    host.draining.set()
    thread = threading.Thread(target=lambda: asyncio.run(host._life()))
    assert host.alive()
    thread.start()
    # When that lasts, it does not live; when it turns again, it does
    wait_until(lambda: not host.alive(), 10)
    actor.let_go.set()
    wait_until(host.alive, 10)
    actor.stopped.set()
    thread.join(10)
