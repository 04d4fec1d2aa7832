"""Hooks that ask a model: what is sent, what it costs, and what becomes of its faults."""

from __future__ import annotations

import msgspec
import pytest
from gymq_workers.agent.machine import ASKS

from gymq.api.agent import Finish, Generate, Respond
from gymq.store.run_status import TOKENS
from gymq.wire.calls import Asked, Generated, Responded, Scored, Tokens, Usage, decode_parameters
from gymq.wire.message import Message, encode_message
from tests.support.play import (
    Play,
    Script,
    calls,
    failed,
    messages,
    only,
    record,
    records,
    reply,
    responded,
    said,
    scored,
)

QUESTION = [encode_message(Message("user", "Is it good?"))]


def asked(hook: str = "verify", note: object = 1, **more):
    ask = Asked(QUESTION, msgspec.msgpack.encode(note), **more)
    return reply(Scored(ask=ask) if hook == "verify" else Responded(ask=ask))


def judged(**config) -> Play:
    """A rollout with one answer of its model, whose verifier is out."""
    play = Play(Script(Generate(), Finish()), config=config)
    play.go()
    play.go(said())
    return play


@pytest.mark.parametrize(
    ("config", "ask", "mailbox"),
    [
        ({}, {}, "model:model"), ({"judge": "openai:judge"}, {}, "model:openai:judge"),
        ({"judge": "openai:judge"}, {"model": "openai:other"}, "model:openai:other"),
    ],
)  # fmt: skip
def test_a_question_goes_to_the_judge_with_all_that_it_needs(config, ask, mailbox):
    play = judged(call_timeout=9.0, **config)
    step = play.go(asked(sampling=b'{"temperature":0}', **ask))
    ((to, call),) = calls(step)
    assert (to, call.kind, call.messages, call.seen, call.length) == (mailbox, "ask", QUESTION, 0, 1)
    assert (decode_parameters(call.parameters).request(), call.timeout) == (b'{"temperature":0}', 9.0)


def test_the_hook_is_called_again_with_the_answer_and_its_note():
    # Given a verifier that asks twice
    play = judged()
    assert (only(play.go(asked(note={"n": 1}))).kind, play.state.phase) == ("ask", "verifying")
    first = only(play.go(said("yes")))
    assert (first.kind, first.answer, first.note) == ("verify", encode_message(Message("assistant", "yes")), b"\x81\xa1n\x01")
    play.go(asked(note={"n": 2}))
    second = only(play.go(said("sure")))
    assert (second.answer, second.note) == (encode_message(Message("assistant", "sure")), b"\x81\xa1n\x02")
    # When it comes to an end
    header = record(play.go(scored(0.5)))
    # Then nothing of that is the rollout's own
    assert (header["reward"], header["turns"], header["usage"]["input_tokens"]) == (0.5, 1, 5)
    assert [message["role"] for message in messages(play)] == ["user", "assistant"]


def test_a_question_stands_in_the_calls_without_its_tokens():
    play = judged(judge="openai:judge")
    play.go(asked())
    (call,) = records(play.go(said("yes", tokens=Tokens(0, b"1234", b"5678"))))
    assert (call["kind"], call["name"], call["input_tokens"], call["output_tokens"]) == ("ask", "openai:judge", 5, 3)
    assert "tokens" not in call


def test_a_judge_that_is_away_is_asked_again_and_not_the_verifier():
    play = judged(infra_retries=0, verify_retries=3)
    play.go(asked())
    for kind in ("model_unavailable", "timeout", "model_unavailable"):
        assert play.go(failed(kind)).sends == []
        assert only(play.due()).kind == "ask"
    assert only(play.go(said("yes"))).kind == "verify"
    # and an outage of what the verifier does with the answer sends the same answer again
    assert record(play.go(failed("unavailable")))["no_reward"] == "unavailable: unavailable happened"


def test_an_answer_is_kept_over_a_wait():
    play = judged()
    play.go(asked())
    first = only(play.go(said("yes")))
    play.go(failed("unavailable"))
    again = only(play.due())
    assert (again.kind, again.answer, again.note) == ("verify", first.answer, first.note)


@pytest.mark.parametrize("kind", ["context_overflow", "model", "replay_miss"])
def test_a_judges_other_faults_leave_the_reward_out(kind):
    play = judged()
    play.go(asked())
    header = record(play.go(failed(kind)))
    assert (header["status"], header["reward"], header["no_reward"]) == ("completed", None, f"{kind}: {kind} happened")


def test_a_judge_that_refuses_its_key_fails_the_rollout_as_the_own_model_does():
    play = judged()
    play.go(asked())
    header = record(play.go(failed("model_access")))
    assert (header["status"], header["reward"], header["error"]["kind"]) == ("failed", None, "model_access")


def test_questions_are_bounded():
    play = judged()
    for _ in range(ASKS):
        assert only(play.go(asked())).kind == "ask"
        play.go(said("maybe"))
    header = record(play.go(asked()))
    assert (header["reward"], header["no_reward"]) == (
        None, f"verifier: asked a model {ASKS} times and did not come to an end",
    )  # fmt: skip


def test_an_environment_that_speaks_may_ask_too():
    # Given a user who is played by a model
    play = Play(Script(Respond(), Respond(), Finish()), hooks=("respond", "verify"), config={"judge": "user"})
    play.go()
    for text in ("first", "second"):
        ((to, call),) = calls(play.go(asked("respond")))
        assert (to, call.kind) == ("model:user", "ask")
        again = only(play.go(said(text)))
        assert (again.kind, again.answer) == ("respond", encode_message(Message("assistant", text)))
        step = play.go(responded(text))
        # Then a new call of the hook begins without an answer
        assert only(step).answer is None
        assert play.state.asks == 0
    assert only(step).kind == "verify"


def test_the_one_who_plays_the_user_is_on_the_rollouts_budget_and_fails_it():
    play = Play(Script(Respond()), hooks=("respond", "verify"), config={"infra_retries": 1})
    play.go()
    play.go(asked("respond"))
    play.go(failed("model_unavailable"))
    assert only(play.due()).kind == "ask"
    header = record(play.go(failed("model_unavailable")))
    assert (header["status"], header["error"]["kind"]) == ("failed", "model_unavailable")


def test_time_ends_a_question_of_the_conversation_and_scores_it():
    play = Play(Script(Respond()), hooks=("respond", "verify"), config={"max_seconds": 60})
    play.go()
    play.go(asked("respond"))
    verify = only(play.due(61))
    assert (verify.kind, verify.answer, verify.note) == ("verify", None, None)


def test_the_tokens_of_a_judge_are_counted_apart_from_the_policys():
    play = judged(judge="openai:judge")
    for _ in range(2):
        play.go(asked())
        play.go(reply(Generated(encode_message(Message("assistant", "yes")), "stop", Usage(7, 2, 3))))
    step = play.go(scored())
    counters = dict(zip(step.final.counters[::2], step.final.counters[1::2], strict=True))
    policy = {f"u:{name}:model": getattr(play.state.usage, name) for name in TOKENS}
    policy = {name: count for name, count in policy.items() if count}
    assert policy
    assert counters == policy | {
        "u:input_tokens:openai:judge": 14,
        "u:output_tokens:openai:judge": 4,
        "u:cached_tokens:openai:judge": 6,
    }
