import os, pytest
from hypothesis import settings, HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test
from tests.gymq.test_scripts import Protocol
from tests.support.protocol import world as w
from tests.support.shard import keys

N = int(os.environ.get("N", "40"))
seen = {"private": 0, "hb": 0}


def test_long(redis_url, monkeypatch):
    monkeypatch.setattr("gymq.liveness.time", Protocol.clock)
    Protocol.url = redis_url
    old = w.World.hand_back

    def hb(self, name, most, why="0"):
        own = keys.own(name)
        seen["hb"] += self.redis.xlen(own)
        return old(self, name, most, why)

    monkeypatch.setattr(w.World, "hand_back", hb)
    olds = w.World.shut
    seen["shut"] = 0

    def sh(self, worker, most):
        m = olds(self, worker, most)
        seen["shut"] += m
        return m

    monkeypatch.setattr(w.World, "shut", sh)
    try:
        run_state_machine_as_test(
            Protocol,
            settings=settings(
                max_examples=N,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        print(seen)
