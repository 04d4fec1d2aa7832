"""Live sessions: kept while they stand for the rollout's state, made anew when they do not, closed when nobody needs them."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
from gymq_workers.invocation import sessions as module
from gymq_workers.resource.worker import ResourceWorker

from gymq import plugins
from gymq.api.environment import Environment, Opening, hook, tool
from gymq.errors import CallError, ToolError, UsageError
from gymq.wire.calls import Call, decode_call, encode
from gymq.wire.task import Task, encode_task

TASK = encode_task(Task("t", "live", [], b'{"seed":3}'))


class Steps(msgspec.Struct):
    """The steps so far."""

    ways: list[int] = []


class Object:
    """A live object that knows what was done to it."""

    def __init__(self, ways):
        self.ways = list(ways)
        self.closed = 0

    def close(self):
        self.closed += 1


class Live(Environment):
    """Tools that use a session, well or badly."""

    name = "live"
    State = Steps
    sessions = 3
    made: list[Object] = []

    def session(self, task, state):
        assert task["seed"] == 3
        self.made.append(Object(state.ways))
        return self.made[-1]

    def open(self, session):
        return Opening(state=Steps([9]) if session.ways else Steps())

    @tool()
    async def go(self, way: int, state: Steps, session: Object) -> str:
        session.ways.append(way)
        await asyncio.sleep(0)
        if way < 0:
            raise ToolError("there is a wall")
        if way > 99:
            raise ValueError("broken")
        state.ways.append(way)
        return str(session.ways)

    @tool(timeout=0.2)
    async def hang(self, session: Object) -> str:
        session.ways.append(0)
        await asyncio.Event().wait()
        return ""

    @tool(timeout=0.2)
    def block(self, session: Object) -> str:
        session.ways.append(0)
        self.blocked.wait(10)
        session.ways.append(session.closed)
        return ""

    @tool(read_only=True)
    async def look(self, session: Object) -> str:
        before = list(session.ways)
        session.ways.append("look")
        await asyncio.sleep(0.01)
        assert session.ways.pop() == "look"
        assert session.ways == before
        return str(session.ways)

    @tool()
    def rest(self, state: Steps) -> str:
        return "rested"


@pytest.fixture
def live(monkeypatch):
    environment = Live()
    Live.made = []
    Live.blocked = threading.Event()
    monkeypatch.setattr(plugins, "environment", lambda name: environment)
    monkeypatch.setattr(plugins, "points", lambda group: {"live": None})
    yield environment
    Live.blocked.set()


@pytest.fixture
async def worker(live, settings):
    worker = ResourceWorker(settings, {"environments": "live"})
    await worker.connection.connect()
    yield worker
    await worker._sessions.end()
    await worker.connection.close()


def call(name: str = "go", ways=(), rollout: int = 0, kind: str = "tool", born: float = 1.0, **arguments) -> Call:
    state = msgspec.msgpack.encode(Steps(list(ways))) if ways is not None else None
    text = msgspec.json.encode(arguments).decode()
    made = Call(f"r.{rollout}.0", 1, 0, kind, "r", "live", rollout, 1.0, name=name if kind == "tool" else "", arguments=text)
    made.state, made.has_state, made.task, made.born = state, state is not None, TASK, born
    return decode_call(encode(made))


async def settle(worker) -> None:
    while worker._sessions._closing:
        await asyncio.sleep(0.01)


async def test_a_session_is_kept_from_call_to_call_and_sees_what_each_did(live, worker):
    assert b"[1]" in await worker.serve(call(way=1))
    assert b"[1, 2]" in await worker.serve(call(ways=[1], way=2))
    assert b"[1, 2]" in await worker.serve(call("look", ways=[1, 2]))
    assert b"[1, 2, 3]" in await worker.serve(call(ways=[1, 2], way=3))
    assert len(live.made) == 1
    assert worker.stats()["sessions"] == worker.stats()["sessions_made"] == 1


async def test_a_session_that_is_ahead_or_behind_is_made_anew_from_the_state(live, worker):
    # Given a call that was done, but whose reply was lost with its worker's connection
    await worker.serve(call(way=1))
    # When it is delivered again, then it finds no trace of itself
    assert b"[1]" in await worker.serve(call(way=1))
    # and when others have gone on meanwhile, it is where they are
    assert b"[1, 5, 6]" in await worker.serve(call(ways=[1, 5], way=6))
    await settle(worker)
    assert [one.closed for one in live.made] == [1, 1, 0]


@pytest.mark.parametrize("way", [-1, 100])
async def test_what_a_call_that_failed_did_to_its_session_stays_undone(live, worker, way):
    await worker.serve(call(way=1))
    try:
        await worker.serve(call(ways=[1], way=way))
    except CallError as error:
        assert error.fault.kind == "environment"
    assert b"[1, 2]" in await worker.serve(call(ways=[1], way=2))
    await settle(worker)
    assert [one.closed for one in live.made] == [1, 0]


async def test_arguments_that_do_not_fit_leave_the_session_as_it_is(live, worker):
    await worker.serve(call(way=1))
    await worker.serve(call(ways=[1], way="north"))
    assert b"[1, 2]" in await worker.serve(call(ways=[1], way=2))
    assert len(live.made) == 1


async def test_a_session_whose_call_met_its_limit_is_not_used_again(live, worker):
    await worker.serve(call(way=1))
    with pytest.raises(CallError, match="took longer"):
        await worker.serve(call("hang", ways=[1]))
    assert b"[1, 2]" in await worker.serve(call(ways=[1], way=2))


async def test_a_session_that_a_thread_still_uses_is_closed_when_that_returns(live, worker):
    with pytest.raises(CallError, match="took longer"):
        await worker.serve(call("block"))
    assert b"[2]" in await worker.serve(call(way=2))
    assert [one.closed for one in live.made] == [0, 0]
    live.blocked.set()
    while not live.made[0].closed:
        await asyncio.sleep(0.01)
    assert live.made[0].ways == [0, 0]  # it was not closed while it was used


async def test_a_session_that_is_made_too_late_is_closed(live, worker, monkeypatch):
    monkeypatch.setattr(Live, "session", hook(timeout=0.1)(slowly))
    worker._specs["live"] = Live.spec()
    with pytest.raises(CallError, match=r"live\.session took longer than 0\.1 s"):
        await worker.serve(call(way=1))
    live.blocked.set()
    while not (live.made and live.made[0].closed):
        await asyncio.sleep(0.01)
    assert worker.stats()["sessions"] == 0


def slowly(self, task, state):
    self.blocked.wait(10)
    self.made.append(Object(state.ways))
    return self.made[-1]


async def test_calls_beside_each_other_use_it_one_after_another(live, worker):
    await worker.serve(call(way=1))
    found = await asyncio.gather(*(worker.serve(call("look", ways=[1])) for _ in range(5)))
    assert all(b"[1]" in one for one in found)
    assert len(live.made) == 1


async def test_open_may_use_it_and_leaves_it_for_the_state_that_it_gave(live, worker):
    await worker.serve(call(kind="open", ways=None))
    assert b"[1]" in await worker.serve(call(way=1))
    assert len(live.made) == 1


async def test_calls_that_do_not_ask_for_it_make_none(live, worker):
    await worker.serve(call("rest"))
    assert live.made == []


async def test_close_closes_it_whether_the_environment_has_the_hook_or_not(live, worker):
    await worker.serve(call(way=1))
    assert await worker.serve(call(kind="close", ways=[1])) == b""
    await settle(worker)
    assert [one.closed for one in live.made] == [1]
    assert worker.stats()["sessions"] == 0


async def test_the_least_recently_used_is_closed_beyond_the_number_that_is_kept(live, worker):
    for rollout in (0, 1, 2, 0, 3):
        await worker.serve(call("look", rollout=rollout))
    await settle(worker)
    assert [one.closed for one in live.made] == [0, 1, 0, 0]


async def test_another_run_of_the_same_name_gets_another_session(live, worker):
    await worker.serve(call("look"))
    await worker.serve(call("look", born=2.0))
    await settle(worker)
    assert [one.closed for one in live.made] == [1, 0]


async def test_after_an_outage_sessions_are_made_anew(live, worker):
    await worker.serve(call(way=1))
    await worker.forget()
    await settle(worker)
    assert live.made[0].closed == 1
    assert b"[1, 2]" in await worker.serve(call(ways=[1], way=2))


async def test_sessions_of_rollouts_that_are_gone_and_of_those_that_nobody_uses_are_closed(live, worker, monkeypatch):
    await worker.connection.send("HSET", worker.connection.keys.rollout("r.1.0"), "v", 1)
    for rollout in (0, 1):
        await worker.serve(call("look", rollout=rollout))
    await worker.duties()
    assert worker.stats()["sessions"] == 2
    # When they were not used for a while, then that of the rollout which has ended is closed
    monkeypatch.setattr(module, "ORPHAN_CHECK_AFTER", -1.0)
    await worker.duties()
    await settle(worker)
    assert [one.closed for one in live.made] == [1, 0]
    # and later that of the other
    monkeypatch.setattr(module, "IDLE_LIMIT", -1.0)
    await worker.duties()
    await settle(worker)
    assert [one.closed for one in live.made] == [1, 1]


async def test_a_close_that_fails_is_told_and_harms_nobody(live, worker, monkeypatch, caplog):
    monkeypatch.setattr(Object, "close", lambda self: 1 / 0)
    await worker.serve(call("look"))
    await worker.serve(call(kind="close"))
    await settle(worker)
    assert "a session of live could not be closed: ZeroDivisionError" in caplog.text


# What cannot be.


def test_who_is_isolated_cannot_ask_for_the_session():
    with pytest.raises(UsageError, match=r"Apart\.act is isolated, in another process than the session"):

        class Apart(Environment):
            def session(self, task):
                return object()

            @tool(isolated=True)
            def act(self, session) -> str:
                return ""

    with pytest.raises(UsageError, match=r"Judge\.verify is isolated"):

        class Judge(Environment):
            def session(self, task):
                return object()

            @hook(isolated=True)
            def verify(self, session):
                return 1.0


def test_a_session_cannot_be_made_elsewhere_or_not_at_all():
    with pytest.raises(UsageError, match=r"Far\.session cannot be isolated"):

        class Far(Environment):
            @hook(isolated=True)
            def session(self, task):
                return object()

    with pytest.raises(UsageError, match=r"None_\.act asks for the session; define session\(self, task, state\)"):

        class None_(Environment):
            @tool()
            def act(self, session) -> str:
                return ""


def test_agents_are_told_who_asks_for_it():
    spec = Live.spec()
    assert spec.session.present
    assert spec.open.session
    assert not spec.verify.session
    assert {one.name: one.session for one in spec.tools} == {
        "go": True,
        "hang": True,
        "block": True,
        "look": True,
        "rest": False,
    }
    assert "session" not in str(spec.tools[0].schema)
