"""The processes of a run: each serves its metrics at a port of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from gymq import plugins
from gymq.local.launch import children
from gymq.settings import Settings
from gymq.store.runs import RunConfig


def ports(port: int | None) -> dict[str, str]:
    config = RunConfig("r", "weather", "tool", "scripted")
    spec = type(plugins.environment("weather")).spec()
    settings = Settings(metrics_port=port)
    specs = children(settings, config, {"scripted": {}, "openai:judge": {}}, [spec], Path("o.jsonl"), Path("logs"))
    return {child.name: child.env["GYMQ_METRICS_PORT"] for child in specs}


def test_the_metrics_of_the_installation_come_first_and_each_process_has_the_next_port():
    assert ports(9100) == {
        "metrics": "9100",
        "sink": "9101",
        "agent": "9102",
        "resource": "9103",
        "model": "9104",
        "judge": "9105",
    }


@pytest.mark.parametrize(("port", "theirs"), [(None, ""), (0, "0")])
def test_without_a_port_none_is_served_and_any_free_port_will_do_for_all(port, theirs):
    assert set(ports(port).values()) == {theirs}
    assert ("metrics" in ports(port)) == (port is not None)


def test_the_key_of_a_model_goes_to_its_worker_and_the_secrets_of_an_environment_to_its_own(monkeypatch):
    weather = type(plugins.environment("weather"))
    monkeypatch.setattr(weather, "secrets", ("WEATHER_TOKEN",))
    models = {"scripted": {}, "openai:judge": {}}
    specs = children(
        Settings(), RunConfig("r", "weather", "tool", "scripted"), models, [weather.spec()], Path("o.jsonl"), Path("l")
    )
    assert {child.name: set(child.secrets) for child in specs} == {
        "sink": set(),
        "agent": set(),
        "resource": {"WEATHER_TOKEN"},
        "model": set(),
        "judge": {"OPENAI_API_KEY"},
    }
