"""The time that counts: the server's clock, and since when mailboxes have been served."""

from __future__ import annotations

import time
from math import inf

import pytest

from gymq.runtime.service_times import GAP, ServiceTimes
from tests.support.shard import keys


async def test_a_mailbox_is_served_since_its_first_look_after_a_gap(connection):
    # Given an agent and a model that are served, and were served without a gap
    agent, model = ServiceTimes(), ServiceTimes()
    before = time.time()
    await model.look(connection, ["model:m"], False)
    await agent.look(connection, ["agent"], True)
    since = agent.since("model:m")
    await model.look(connection, ["model:m"], False)
    await agent.look(connection, ["agent"], True)
    assert agent.since("model:m") == since == pytest.approx(before, abs=2)
    assert agent.since("agent", "model:m") >= since
    assert agent.since("agent", "model:other") == inf
    # When nobody looks for longer than the gap
    old, now = round((before - 7200) * 1000), round(time.time() * 1000)
    await connection.send("HSET", keys.served, "model:m", f"{old} {now - round(GAP * 1000) - 1000}")
    await agent.look(connection, ["agent"], True)
    # Then the mailbox is not served, and when somebody looks it is served since then
    assert agent.since("model:m") == inf
    await model.look(connection, ["model:m"], False)
    await agent.look(connection, ["agent"], True)
    assert agent.since("agent", "model:m") == pytest.approx(now / 1000, abs=2)
    assert await connection.send("PTTL", keys.served) > 0


async def test_a_worker_goes_by_the_servers_clock(connection, monkeypatch):
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 3900)
    times = ServiceTimes()
    assert times.now() > right() + 3000
    await times.look(connection, [], False)
    assert times.now() == pytest.approx(right(), abs=2)
