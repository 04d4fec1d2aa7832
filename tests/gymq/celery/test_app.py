"""The Celery app: its task, its queues, and Flower."""

from __future__ import annotations

import base64
import json
import sys
import urllib.error
import urllib.request

import pytest
from redis import Redis

from gymq.settings import Settings
from tests.support.servers import free_port
from tests.support.waiting import wait_until

#: Stands in for `gymq.celery.enqueue_task`.
ADMISSION = """
import sys, types, json, redis
stand_in = types.ModuleType("gymq.celery.enqueue_task")
def enqueue(settings, run, chunk, rows):
    redis.Redis.from_url(settings.redis_url).rpush("test:enqueued", json.dumps([run, chunk, rows]))
stand_in.enqueue = enqueue
sys.modules["gymq.celery.enqueue_task"] = stand_in
import gymq.celery
gymq.celery.enqueue_task = stand_in
"""


def test_nothing_takes_pickle():
    from gymq.celery import app

    assert "pickle" not in app.conf.accept_content
    assert app.conf.result_backend is None


@pytest.mark.parametrize("client", ["gymq", "plain"])
def test_any_celery_client_enqueues_rollouts(worker, redis_url, tmp_path, client):
    # Given an agent worker
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "fake_admission.py").write_text(ADMISSION)
    with (tmp_path / "site" / "gymq-0.dist-info" / "entry_points.txt").open("a") as points:
        points.write("[gymq.tasks]\nadmission = fake_admission\n")
    agent = worker("agent")

    # When a client sends rows: one with gymq's app, one that knows only names
    rows = [{"id": "1", "question": "π?"}]
    from celery import Celery

    if client == "gymq":
        from gymq.celery.application import create

        app = create(Settings(redis_url=redis_url))
        app.send_task("gymq.enqueue", ("demo", "c1", rows))
    else:
        app = Celery("client", broker=redis_url, set_as_current=False)
        app.send_task("gymq.enqueue", ("demo", "c1", rows), queue="gymq.rollouts")

    # Then the worker's admission gets them, and the broker holds nothing any more
    with Redis.from_url(redis_url) as redis:
        wait_until(lambda: redis.llen("test:enqueued"), what=agent.text)
        assert json.loads(redis.lrange("test:enqueued", 0, -1)[0]) == ["demo", "c1", rows]
        assert not [key for key in redis.keys("*unacked*")]


KNOWN = {"Authorization": "Basic " + base64.b64encode(b"gymq:secret").decode()}
WRONG = {"Authorization": "Basic " + base64.b64encode(b"gymq:wrong").decode()}


@pytest.mark.slow
def test_flower_shows_the_worker_and_a_rollout_as_a_task(worker, redis_url, spawn, tmp_path):
    # Given Flower, started where a file of its name lies, and a worker whose actor says that a rollout went well
    port = free_port()
    argv = [sys.executable, "-P", "-m", "gymq.cli", "flower", "--port", str(port)]
    log = tmp_path / "flower.log"
    (tmp_path / "flowerconfig.py").write_text("open('executed', 'w').close()")
    environment = {"GYMQ_REDIS_URL": redis_url, "GYMQ_FLOWER_PASSWORD": "secret"}
    spawn(argv, environment, stdout=log.open("wb"), stderr=-2, cwd=tmp_path)
    wait_until(lambda: "the password of GYMQ_FLOWER_PASSWORD" in log.read_text(), limit=20, what="flower")
    with Redis.from_url(redis_url) as redis:
        wait_until(redis.pubsub_numpat, limit=20, what="flower at the events")
    agent = worker("agent")

    def ask(path: str, **arguments):
        return urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", **arguments),
            timeout=10,
        )

    def get(path: str):
        with ask(path, headers=KNOWN) as answer:
            return json.load(answer)

    # Then both are seen
    wait_until(lambda: get("/api/tasks").get("r1", {}).get("state") == "SUCCESS", limit=15)
    task = get("/api/tasks")["r1"]
    assert (task["name"], task["result"], task["worker"]) == ("rollout:weather", "reward=1.0", agent.name)
    assert get("/api/workers?status=1") == {agent.name: True}
    # And nothing is told without the password, and nothing can be changed with it
    pages = ("/", "/workers", f"/worker/{agent.name}", "/task/r1", "/api/tasks", "/api/workers", "/login", "/nosuch")
    for path in (*pages, "/metrics", "/healthcheck", "/static/css/flower.css"):
        assert refused(lambda path=path: ask(path)) == 401
        assert refused(lambda path=path: ask(path, headers=WRONG)) == 401
    for path in (f"/api/worker/shutdown/{agent.name}", "/api/task/send-task/gymq.enqueue", "/api/task/revoke/r1"):
        assert refused(lambda path=path: ask(path, headers=KNOWN, method="POST", data=b"{}")) == 403
    # And nothing is told with it under a name that another may have let stand for this machine
    for host in ("rebound.example", f"rebound.example:{port}", "localhost.rebound.example", "127.0.0.1.rebound.example"):
        assert refused(lambda host=host: ask("/api/tasks", headers={**KNOWN, "Host": host})) == 403
    for host in ("localhost", f"LOCALHOST:{port}", "[::1]:1", "127.0.0.1"):
        assert ask("/api/tasks", headers={**KNOWN, "Host": host}).status == 200
    # And it gives no numbers that would count a sample of the rollouts
    assert refused(lambda: ask("/metrics", headers=KNOWN)) == 404
    assert not (tmp_path / "executed").exists()


def refused(ask) -> int:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask()
    return refusal.value.code
