"""The look at a run's models: what is waited for, what is said, and what stops the command."""

from __future__ import annotations

import pytest

from gymq import plugins
from gymq.api.backend import Backend
from gymq.errors import CallError
from gymq.local import model_probe
from gymq.local.model_probe import ModelSilent, probe_models
from gymq.local.run_options import RunOptions


class Silent(Backend):
    """A backend that answers after some looks."""

    name = "silent"
    looks = 0

    async def probe(self) -> str:
        Silent.looks += 1
        if Silent.looks < int(self.model):
            raise CallError("model_unavailable", "nobody is there")
        return "it is slow"


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr(plugins, "backend", lambda spec, options: Silent(spec.partition(":")[2], options))
    monkeypatch.setattr(model_probe, "INTERVAL", 0.0)
    Silent.looks = 0


async def test_a_model_that_starts_meanwhile_is_waited_for_and_its_defect_is_said():
    said: list[str] = []
    await probe_models(RunOptions(data="d", model="silent:3"), said.append)
    assert [line.split("; ")[0] for line in said] == ["model silent:3: nobody is there", "model silent:3: it is slow"]
    assert Silent.looks == 3


async def test_a_model_that_stays_away_ends_the_command_before_a_rollout_begins():
    with pytest.raises(ModelSilent, match="model silent:9: nobody is there; start it, or correct its address") as caught:
        await probe_models(RunOptions(data="d", model="silent:9"), lambda _: None, patience=0)
    assert caught.value.exit_code == 7


async def test_a_judge_of_its_own_is_asked_too():
    with pytest.raises(ModelSilent, match="model silent:9"):
        await probe_models(RunOptions(data="d", model="silent:1", judge="silent:9"), lambda _: None, patience=0)
