"""Calls go where the rollout is known: to the replica that answered last, or to the owner of the live session."""

from __future__ import annotations

import msgspec
from gymq_workers.agent.tool_agent import ToolAgent

from gymq.errors import Fault
from gymq.runtime.affinity import NEVER_LEAVE, WORKER_MARGIN, AffinityRouter
from tests.support.play import Play, calls, failed, only, opened, record, result, said, scored, spec, ways

NOBODY: tuple = ()
GO, LOOK, REST = spec("go", session=True), spec("look", session=True, read_only=True), spec("rest")


def routes(*workers: str, box: str) -> AffinityRouter:
    return AffinityRouter([part for worker in workers for part in (worker.encode(), msgspec.json.encode([box]))])


MODELS, RESOURCES = routes("m1", "m2", box="model:model"), routes("w", "w2", "w3", "w4", box="resource:world")


def by(worker: str, reply):
    reply.worker = worker
    return reply


def test_without_private_mailboxes_nobody_is_named_and_nothing_is_noted():
    play = Play(ToolAgent(), tools=[REST])
    steps = [play.go(), play.go(said(None, "rest")), play.go(result("x")), play.go(said())]
    assert [ways(step) for step in steps] == [[NOBODY]] * 4
    assert (play.state.replica, play.state.keeper) == ("", "")


def test_a_conversation_stays_with_who_answered_last():
    play = Play(ToolAgent(), tools=[REST], routes=MODELS, config={"samples": 4})
    ((first, margin),) = ways(play.go())
    assert sorted(first) == ["m1", "m2"]
    assert margin == WORKER_MARGIN
    assert ways(play.go(by("m2", said(None, "rest")))) == [NOBODY]  # a tool's call
    assert ways(play.go(result("x"))) == [(["m2", "m1"], WORKER_MARGIN)]
    play.go(by("m1", said(None, "rest")))
    assert ways(play.go(result("x"))) == [(["m1", "m2"], WORKER_MARGIN)]


def test_what_failed_at_a_replica_is_sent_again_to_anybody():
    play = Play(ToolAgent(), routes=MODELS, config={"infra_retries": 2})
    play.go()
    play.go(by("m1", failed("model_unavailable")))
    again = play.due(60)
    assert again is not None
    assert ways(again) == [NOBODY]
    assert only(again).kind == "generate"


def test_all_that_asks_for_the_session_goes_to_its_owner_and_nothing_else():
    play = Play(ToolAgent(), tools=[GO, LOOK, REST], hooks=("open!", "verify!", "close"), routes=RESOURCES)
    assert ways(play.go()) == [NOBODY]  # whoever has room
    play.go(by("w3", opened()))
    assert play.state.keeper == "w3"
    assert ways(play.go(said(None, "go"))) == [(["w3"], NEVER_LEAVE)]
    play.go(by("w3", result("x")))
    assert ways(play.go(said(None, "rest"))) == [NOBODY]
    play.go(by("w4", result("x")))
    assert play.state.keeper == "w3"
    assert ways(play.go(said())) == [(["w3"], NEVER_LEAVE)]
    # Closing goes where it is to be closed.
    assert ways(play.go(by("w2", scored()))) == [(["w2"], NEVER_LEAVE)]


def test_calls_beside_each_other_make_one_session():
    play = Play(ToolAgent(), tools=[GO, LOOK, REST], routes=RESOURCES)
    play.go()
    step = play.go(said(None, "look", "look"))
    assert len(calls(step)) == 2
    first, second = ways(step)
    assert first[0][0] == second[0][0]
    assert first[1] == 0


def test_a_rollout_with_a_session_is_closed_though_the_environment_has_no_close():
    play = Play(ToolAgent(), tools=[GO, REST], hooks=("verify", "session"), routes=RESOURCES)
    play.go()
    play.go(said(None, "go"))
    play.go(by("w2", result("x")))
    play.go(said())
    step = play.go(scored())
    assert only(step).kind == "close"
    assert ways(step) == [(["w2"], NEVER_LEAVE)]
    # Also when it is cancelled.
    again = Play(ToolAgent(), tools=[GO], hooks=("verify", "session"), routes=RESOURCES)
    again.go()
    again.go(said(None, "go"))
    again.go(by("w2", result("x")))
    assert only(again.cancel(Fault("cancelled", "x"))).kind == "close"


def test_a_rollout_that_has_had_no_session_is_not_closed():
    play = Play(ToolAgent(), tools=[GO, REST], hooks=("verify", "session"), routes=RESOURCES)
    play.go()
    play.go(said())
    assert record(play.go(scored()))["status"] == "completed"


def test_a_session_is_looked_for_where_it_was_made_though_a_call_failed_there():
    play = Play(ToolAgent(), tools=[GO], hooks=("open!", "verify"), routes=RESOURCES, config={"infra_retries": 2})
    play.go()
    play.go(by("w", opened()))
    play.go(said(None, "go"))
    play.go(by("w4", failed("unavailable")))
    again = play.due(60)
    assert again is not None
    assert ways(again) == [(["w"], NEVER_LEAVE)]
