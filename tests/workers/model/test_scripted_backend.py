"""The backend `scripted`: the environment's policy answers."""

from __future__ import annotations

import time

import pytest
from gymq_workers.model.scripted_backend import ScriptedBackend

from gymq.api.environment import Environment
from gymq.errors import CallError, UsageError
from gymq.wire.message import Function, Message, ToolCall, decode_message
from gymq.wire.task import Task
from tests.support.model_server import ask


class Quiet(Environment):
    name = "quiet"


class Polite(Environment):
    name = "polite"

    def policy(self, messages):
        return Message("assistant", f"Thank you for {messages.last.text}.")


class Patient(Environment):
    name = "patient"

    async def policy(self, task):
        call = ToolCall("c1", Function("f", "{}"))
        return Message("assistant", task["expected"], tool_calls=[call])


class Broken(Environment):
    name = "broken"

    def policy(self, messages):
        return "text" if messages.last.text == "text" else 1 / 0


@pytest.fixture
async def backend(monkeypatch):
    known = {cls.name: cls() for cls in (Quiet, Polite, Patient, Broken)}
    monkeypatch.setattr("gymq_workers.model.scripted_backend.load_environments", lambda names: known)
    backend = ScriptedBackend("", {})
    await backend.start()
    return backend


async def fault(backend, request):
    with pytest.raises(CallError) as caught:
        await backend.generate(request)
    assert caught.value.fault.kind == "model"
    return caught.value.fault.message


async def test_the_policy_answers(backend):
    answer = await backend.generate(ask("cake", environment="polite"))
    assert decode_message(answer.message) == Message("assistant", "Thank you for cake.")
    assert (answer.finish, answer.model, answer.tokens) == ("stop", "scripted", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (0, 0)


async def test_an_async_policy_sees_the_task(backend):
    request = ask("Hi", environment="patient")
    request.task = Task("t", "patient", [], b'{"expected":"yes"}')
    answer = await backend.generate(request)
    assert (decode_message(answer.message).content, answer.finish) == ("yes", "tool_calls")


async def test_the_task_is_asked_for_only_by_policies_that_want_it(backend):
    assert not backend.needs_task("polite")
    assert backend.needs_task("patient")


@pytest.mark.parametrize("environment", ["quiet", "nowhere"])
async def test_an_environment_without_a_policy_says_so(backend, environment):
    assert f"environment {environment} has no policy on this worker" in await fault(backend, ask("Hi", environment=environment))


async def test_a_policy_that_fails_is_named(backend):
    found = await fault(backend, ask("Hi", environment="broken"))
    assert found == "the policy of environment broken raised ZeroDivisionError: division by zero"
    assert "returned a str, not a Message" in await fault(backend, ask("text", environment="broken"))


async def test_latency_imitates_a_slow_model(backend):
    slow = ScriptedBackend("slow", {"latency": "0.05"})
    await slow.start()
    began = time.monotonic()
    answer = await slow.generate(ask("cake", environment="polite"))
    assert time.monotonic() - began >= 0.05
    assert answer.model == "scripted:slow"


@pytest.mark.parametrize("latency", ["soon", -1, float("nan"), float("inf")])
def test_a_latency_that_is_none_is_refused(latency):
    with pytest.raises(UsageError, match="latency"):
        ScriptedBackend("", {"latency": latency})
