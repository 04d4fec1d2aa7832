"""A replica in one process: what calls wait for while weights change, and what becomes of those in flight."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import msgspec
import pytest
from gymq_workers.model import weight_updater
from gymq_workers.model.worker import ModelWorker

from gymq import plugins
from gymq.api.backend import Backend
from gymq.client.publish_weights import forget, publish
from gymq.client.replica_status import weights_status
from gymq.errors import CallError, GymqError
from gymq.store import scripts
from gymq.store.sharded import Shards
from gymq.wire.calls import Call, Generated, RequestParameters, Usage, encode
from gymq.wire.message import Message, decode_message, encode_message

#: Seconds that an answer of the backend takes when it is not asked to take longer.
QUICK = 0.02


class Policy(Backend):
    """Answers with its version, after as long as it was asked to; loading takes `loads` seconds."""

    name = "policy"
    versioned = True
    loads = 0.3

    def __init__(self, model, options) -> None:
        super().__init__(model, options)
        self.begun = self.going = 0
        self.loaded: list[tuple[int, str, int]] = []
        self.stopped = False

    async def generate(self, request):
        self.begun += 1
        self.going += 1
        try:
            await asyncio.sleep(float(request.messages.last.text))
        finally:
            self.going -= 1
        return Generated(encode_message(Message("assistant", str(self.version))), "stop", Usage())

    async def update_weights(self, path, version, mode):
        self.loaded.append((version, mode, self.going))
        await asyncio.sleep(self.loads)
        if "broken" in path:
            raise ValueError("no such tensor:\nlm_head")

    async def stop(self):
        self.stopped = True


@pytest.fixture
async def shards(settings):
    found = Shards(settings, "test")
    await found.connect()
    yield found
    await forget(found, "policy")
    await found.close()


@pytest.fixture
async def make(settings, monkeypatch, tmp_path):
    """Makes workers that look, as their sweep lets them; `await make()` is one that has begun."""
    monkeypatch.setattr(plugins, "load", lambda group, name: Policy)
    made, looking = [], []

    async def look(worker: ModelWorker) -> None:
        while True:
            worker._backend.replica.look()
            await asyncio.sleep(0.05)

    async def worker() -> ModelWorker:
        one = ModelWorker(settings, {"model": "policy"})
        one.left = []
        one.leave = one.left.append
        await one.prepare()
        made.append(one)
        looking.append(asyncio.create_task(look(one)))
        return one

    yield worker
    for task in looking:
        task.cancel()
    for one in made:
        await one.close()


async def ask(worker: ModelWorker, seconds: float = QUICK, timeout: float = 0.0, n: int = 0) -> int:
    """Ask for an answer; the version that gave it."""
    turns = [encode_message(Message("user", str(seconds)))]
    call = Call(f"r.{n}.0", 1, 0, "generate", "r", "world", 0, time.time(), length=1, messages=turns, timeout=timeout)
    call.parameters = encode(RequestParameters())
    value = await worker.serve(call)
    return int(decode_message(msgspec.msgpack.decode(value, type=Generated).message).text)


def backend(worker: ModelWorker) -> Policy:
    return worker._backend._backend


@asynccontextmanager
async def taking(worker: ModelWorker):
    """Inside, the worker loads weights."""
    before = len(backend(worker).loaded)
    while len(backend(worker).loaded) == before:
        await asyncio.sleep(0.01)
    yield


async def test_what_was_published_before_is_loaded_before_anything_else(make, shards, tmp_path):
    await publish(shards, "policy", 4, str(tmp_path), mode="abort")
    worker = await make()
    assert backend(worker).loaded == [(4, "abort", 0)]
    assert await ask(worker) == 4
    assert worker.stats()["version"] == "4"


async def test_calls_that_come_while_it_loads_wait_and_their_time_does_not_run(make, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "loads", 1.5)
    worker = await make()
    assert await ask(worker) == 0
    await publish(shards, "policy", 1, str(tmp_path))
    async with taking(worker):
        assert worker.intake.on_hold
        assert worker.stats()["loading"] == "1"
        # Loading takes longer than the call may
        assert await ask(worker, timeout=Policy.loads / 3) == 1
    assert not worker.intake.on_hold
    assert worker.waited["r.0.0:1:0"] > Policy.loads / 3


@pytest.mark.parametrize("seconds, timeout", [(0.4, 0.6), (30, 0.6)])
async def test_the_time_of_calls_that_stand_still_stands_still(make, shards, tmp_path, monkeypatch, seconds, timeout):
    # Given a backend that freezes its calls while it loads, for longer than a call may take
    monkeypatch.setattr(Policy, "loads", 1.0)
    worker = await make()
    thawed = asyncio.Event()
    load = backend(worker).update_weights

    async def freeze(*what) -> None:
        thawed.clear()
        await load(*what)
        thawed.set()

    async def generate(request):
        left = float(request.messages.last.text)
        while left > 0:
            await asyncio.sleep(0.02)
            await thawed.wait()
            left -= 0.02
        return Generated(encode_message(Message("assistant", "0")), "stop", Usage())

    thawed.set()
    monkeypatch.setattr(backend(worker), "update_weights", freeze)
    monkeypatch.setattr(backend(worker), "generate", generate)
    call = asyncio.create_task(ask(worker, seconds, timeout=timeout))
    await asyncio.sleep(0.1)
    await publish(shards, "policy", 1, str(tmp_path), mode="keep")
    # Then it is answered if it is quick enough otherwise, and only then
    if seconds < timeout:
        await call
        assert worker.waited["r.0.0:1:0"] > 0.8
    else:
        began = time.monotonic()
        with pytest.raises(CallError, match=r"longer than 0\.6 s"):
            await call
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("mode, in_flight, begun, versions", [
    ("keep", 3, 3, {1}),
    ("wait", 0, 3, {0}),
    ("abort", 0, 6, {1}),
])  # fmt: skip
async def test_calls_in_flight_are_treated_as_the_mode_says(make, shards, tmp_path, mode, in_flight, begun, versions):
    worker = await make()
    calls = [asyncio.create_task(ask(worker, 0.8, n=n)) for n in range(3)]
    await asyncio.sleep(0.1)
    await publish(shards, "policy", 1, str(tmp_path), mode=mode)
    async with taking(worker):
        assert backend(worker).loaded == [(1, mode, in_flight)]
    assert set(await asyncio.gather(*calls)) == versions
    assert backend(worker).begun == begun


async def test_a_call_that_nobody_wants_is_not_begun_again(make, shards, tmp_path):
    worker = await make()
    unwanted, wanted = (asyncio.create_task(ask(worker, 0.5, n=n)) for n in range(2))
    await asyncio.sleep(0.1)
    await publish(shards, "policy", 1, str(tmp_path), mode="abort")
    async with taking(worker):
        unwanted.cancel()
    assert await wanted == 1
    with pytest.raises(asyncio.CancelledError):
        await unwanted
    assert backend(worker).begun == 3


async def test_a_call_that_is_cut_off_and_unwanted_at_once_is_unwanted(make, shards):
    worker = await make()
    call = asyncio.create_task(ask(worker, 0.5))
    await asyncio.sleep(0.1)
    (task,) = worker._backend.replica._calls
    worker._backend.replica._cut.add(task)
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert backend(worker).begun == 1


async def test_a_call_that_is_begun_again_has_its_whole_time(make, shards, tmp_path):
    worker = await make()
    call = asyncio.create_task(ask(worker, 0.8, timeout=1.2))
    await asyncio.sleep(0.5)
    await publish(shards, "policy", 1, str(tmp_path), mode="abort")
    assert await call == 1
    with pytest.raises(CallError, match=r"longer than 0\.1 s"):
        await ask(worker, 0.8, timeout=0.1)


async def test_replicas_take_turns_and_serve_while_they_wait(make, shards, tmp_path):
    first, second = await make(), await make()
    await publish(shards, "policy", 1, str(tmp_path))
    versions: set[tuple[int, ...]] = set()
    while versions == set() or (1, 1) not in versions:
        versions.add((first._backend.replica.version, second._backend.replica.version))
        loading = [one for one in (first, second) if one._backend.replica.loading is not None]
        assert len(loading) <= 1
        if loading:
            other = first if loading == [second] else second
            assert await asyncio.wait_for(ask(other), 5) in (0, 1)
        await asyncio.sleep(0.01)
    assert (1, 0) in versions or (0, 1) in versions


async def test_all_at_once_is_all_at_once(make, shards, tmp_path):
    first, second = await make(), await make()
    await publish(shards, "policy", 1, str(tmp_path), rolling=False)
    both = False
    while not both:
        both = all(one._backend.replica.loading is not None for one in (first, second))
        await asyncio.sleep(0.01)
    assert await asyncio.gather(ask(first), ask(second)) == [1, 1]


async def test_one_that_may_have_been_away_looks_before_its_next_answer(make, shards, tmp_path):
    worker = await make()
    # Given another whose turn it is, and weights that are to be taken in turn
    assert await shards.first.run(scripts.take_load_turn("policy", "another", 60_000))
    await publish(shards, "policy", 1, str(tmp_path))
    await asyncio.sleep(0.3)
    assert await ask(worker) == 0
    # When it comes back from where nobody knew it, it takes no part in turns: it serves nobody yet
    await worker.forget()
    await worker.handle([])
    assert await asyncio.wait_for(ask(worker), 10) == 1


@pytest.mark.parametrize("path, said", [
    ("broken", "ValueError: no such tensor: lm_head"),
    ("nowhere", "there is no"),
])  # fmt: skip
async def test_weights_that_cannot_be_loaded_end_it_and_no_call_is_answered_after(make, shards, tmp_path, path, said):
    worker = await make()
    (tmp_path / "broken").mkdir()
    wanted = await publish(shards, "policy", 1, str(tmp_path / path))
    until = time.monotonic() + 10
    while not worker.left and time.monotonic() < until:
        await asyncio.sleep(0.02)
    error = worker.left[0]
    assert isinstance(error, GymqError)
    assert "\n" not in str(error)
    assert said in str(error)
    assert wanted.path in str(error)
    assert worker.host in str(error)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask(worker), 0.3)
    (found,) = await weights_status(shards, "policy")
    assert [failure.version for failure in found.failed] == [1]
    assert said in found.failed[0].error
    # One that starts now ends before it serves
    with pytest.raises(GymqError, match="cannot be loaded"):
        await make()


async def test_loading_for_ever_is_a_failure(make, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_updater, "LOAD_LIMIT", 0.2)
    monkeypatch.setattr(Policy, "loads", 60)
    worker = await make()
    await publish(shards, "policy", 1, str(tmp_path))
    until = time.monotonic() + 10
    while not worker.left and time.monotonic() < until:
        await asyncio.sleep(0.02)
    assert "TimeoutError" in str(worker.left[0])


async def test_what_it_has_stays_when_all_is_forgotten_and_lower_versions_may_follow(make, shards, tmp_path):
    await publish(shards, "policy", 9, str(tmp_path))
    worker = await make()
    await forget(shards, "policy")
    await asyncio.sleep(0.2)
    assert await ask(worker) == 9
    await publish(shards, "policy", 1, str(tmp_path))
    async with taking(worker):
        pass
    assert await ask(worker) == 1


async def test_one_for_suspects_only_takes_no_turns(make, shards, tmp_path):
    await publish(shards, "policy", 1, str(tmp_path))
    assert await shards.first.run(scripts.take_load_turn("policy", "another", 60_000))
    worker = await make()
    worker._backend.replica.takes_turns = False
    await publish(shards, "policy", 2, str(tmp_path))
    async with taking(worker):
        pass
    assert await asyncio.wait_for(ask(worker), 5) == 2
