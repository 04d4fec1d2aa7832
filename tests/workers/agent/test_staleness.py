"""Tokens of a policy that is too old: the rollout ends as soon as that is seen, and nothing more is spent on it."""

from __future__ import annotations

import pytest
from gymq_workers.agent.tool_agent import ToolAgent

from gymq.api.agent import Finish, Generate
from gymq.wire.calls import Tokens
from tests.support.play import Play, Script, calls, failed, only, record, reply, responded, result, said, scored

ALL = ("open", "respond", "verify", "close")
ONE = {"max_staleness": 1}


def sampled(*versions: int, tool: str | None = None):
    """An answer whose tokens were sampled with these versions, one after another."""
    runs = [(i, version) for i, version in enumerate(versions)]
    return said("hello", *([tool] if tool else []), tokens=Tokens(0, b"", b"\0" * 4 * len(runs), b"", runs))


def assert_stale(header: dict, versions: list[int], current: int) -> None:
    assert (header["status"], header["stop"], header["reward"]) == ("cancelled", "stale", None)
    assert header["error"]["kind"] == "stale"
    assert f"version {versions[0]}, and the model is at {current}" in header["error"]["message"]
    assert header["versions"] == versions


def test_the_record_tells_the_oldest_and_the_newest_version():
    play = Play(Script(Generate(), Generate(), Finish()), hooks=())
    play.go()
    play.go(sampled(4, 5))
    assert record(play.go(sampled(3)))["versions"] == [3, 5]
    untold = Play(Script(Generate(), Finish()), hooks=())
    untold.go()
    assert record(untold.go(said()))["versions"] is None


@pytest.mark.parametrize("current, stale", [(3, False), (4, False), (5, True)])
def test_a_rollout_ends_at_the_first_step_at_which_its_oldest_token_is_too_old(current, stale):
    play = Play(Script(Generate(), Generate(), Generate()), hooks=("verify",), config=ONE)
    play.go()
    play.current = 3
    assert only(play.go(sampled(3))).kind == "generate"
    # Its newest token is young; that helps nothing
    play.current = current
    step = play.go(sampled(current))
    if stale:
        assert_stale(record(step), [3, current], current)
    else:
        assert only(step).kind == "generate"


def test_without_a_limit_nothing_is_too_old():
    play = Play(Script(Generate(), Finish()), hooks=("verify",))
    play.go()
    play.current = 1000
    assert only(play.go(sampled(1))).kind == "verify"


def test_what_is_too_old_is_closed_and_not_verified():
    play = Play(Script(Generate(), Finish()), hooks=ALL, config=ONE).to("generating")
    play.current = 9
    assert only(play.go(sampled(2))).kind == "close"
    assert_stale(record(play.go(reply())), [2, 2], 9)


def test_it_is_seen_when_tools_or_the_environment_have_answered():
    for after in ("tools", "respond"):
        play = Play(ToolAgent(), tools=["look"], hooks=("respond",), config=ONE)
        play.go()
        step = play.go(sampled(2, tool="look" if after == "tools" else None))
        assert only(step).kind == ("tool" if after == "tools" else "respond")
        play.current = 4
        step = play.go(result("seen") if after == "tools" else responded("more"))
        assert_stale(record(step), [2, 2], 4)


def test_a_conversation_that_the_environment_ends_is_looked_at_too():
    play = Play(ToolAgent(), hooks=("respond", "verify"), config=ONE)
    play.go()
    play.go(sampled(2))
    play.current = 4
    assert_stale(record(play.go(responded("bye", done=True))), [2, 2], 4)


def test_what_waits_for_another_try_does_not_get_it():
    play = Play(Script(Generate(), Generate()), hooks=("verify",), config=ONE)
    play.go()
    play.go(sampled(2))
    assert not calls(play.go(failed("model_unavailable")))
    play.current = 7
    assert_stale(record(play.due(60.0)), [2, 2], 7)


def test_one_that_is_being_verified_keeps_its_reward():
    play = Play(Script(Generate(), Finish()), hooks=("verify",), config=ONE)
    play.go()
    assert only(play.go(sampled(2))).kind == "verify"
    play.current = 9
    header = record(play.go(scored(0.5)))
    assert (header["status"], header["reward"], header["versions"]) == ("completed", 0.5, [2, 2])


def test_nobody_is_too_old_before_a_token_tells_its_version():
    play = Play(Script(Generate(), Generate(), Finish()), hooks=(), config=ONE)
    play.current = 9
    play.go()
    play.go(said())
    assert record(play.go(said()))["status"] == "completed"
