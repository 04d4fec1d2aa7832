"""The model role: questions of verifiers stay apart from conversations, and a call may take so long."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from gymq_workers.model.worker import ModelWorker

from gymq import plugins
from gymq.api.backend import Backend
from gymq.errors import CallError
from gymq.wire.calls import Call, Generated, RequestParameters, Usage, encode
from gymq.wire.message import Message, encode_message


class Echo(Backend):
    """Says what it was asked, after a while."""

    def __init__(self, model, options) -> None:
        super().__init__(model, options)
        self.requests: list = []

    async def generate(self, request):
        self.requests.append(request)
        await asyncio.sleep(30 if request.messages.last.text == "sleep" else 0)
        if request.messages.last.text == "raise":
            raise TimeoutError("of its own")
        return Generated(encode_message(Message("assistant", request.messages.last.text)), "stop", Usage())


@pytest.fixture
def worker(settings, monkeypatch):
    monkeypatch.setattr(plugins, "load", lambda group, name: Echo)
    return ModelWorker(settings, {"model": "echo:x"})


def call(kind: str, *texts: str, **fields) -> Call:
    turns = [encode_message(Message("user", text)) for text in texts]
    made = Call("r.0.3", 1, 0, kind, "r", "world", 0, time.time(), length=len(turns), messages=turns, born=1.0, **fields)
    made.parameters = encode(RequestParameters(b'{"seed":1}' if kind == "ask" else b"{}"))
    return made


async def test_a_question_brings_its_messages_and_leaves_nothing_behind(worker):
    # Given a conversation that the worker knows
    await worker.serve(call("generate", "one", "two"))
    # When a verifier of the same rollout asks something
    value = await worker.serve(call("ask", "good?"))
    assert b"good?" in msgspec.msgpack.decode(value, type=Generated).message
    # Then the conversation is as it was
    await worker.serve(call("generate", "one", "two"))
    names = [
        (request.rollout, [m.text for m in request.messages], request.body) for request in worker._backend._backend.requests
    ]
    assert names == [
        ("r.0.3", ["one", "two"], b"{}"), ("ask:r.0.3", ["good?"], b'{"seed":1}'), ("r.0.3", ["one", "two"], b"{}"),
    ]  # fmt: skip
    assert [request.history is None for request in worker._backend._backend.requests] == [False, True, False]


@pytest.mark.parametrize("kind", ["generate", "ask"])
async def test_a_call_that_takes_longer_than_it_may_is_given_up(worker, kind):
    with pytest.raises(CallError) as raised:
        await worker.serve(call(kind, "sleep", timeout=0.05))
    assert (raised.value.fault.kind, raised.value.fault.message[:33]) == ("timeout", "the model took longer than 0.05 s")


async def test_a_backends_own_time_out_is_not_mistaken_for_ours(worker):
    with pytest.raises(CallError) as raised:
        await worker.serve(call("generate", "raise", timeout=9.0))
    assert raised.value.fault.kind == "model"
