"""Settings: from the environment, from what is given, or refused in one line."""

from __future__ import annotations

import pytest

from gymq.errors import UsageError
from gymq.settings import Settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for field in Settings.__struct_fields__:
        monkeypatch.delenv(f"GYMQ_{field.upper()}", raising=False)


def test_what_is_given_comes_before_the_environment_and_that_before_the_defaults(monkeypatch):
    monkeypatch.setenv("GYMQ_REDIS_URL", "redis://there:1/2")
    monkeypatch.setenv("GYMQ_LIVENESS", "2.5")
    settings = Settings.from_environment(redis_url="redis://here:1/2", liveness=None)
    assert settings == Settings(redis_url="redis://here:1/2", liveness=2.5, ttl=Settings().ttl)


def test_a_variable_that_is_empty_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("GYMQ_TTL", "")
    assert Settings.from_environment() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("LIVENESS", "soon"), ("LIVENESS", "0"), ("LIVENESS", "-1"), ("LIVENESS", "nan"), ("TTL", "1.5"), ("TTL", "-1")],
)
def test_a_variable_that_makes_no_sense_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(f"GYMQ_{name}", value)
    with pytest.raises(UsageError) as error:
        Settings.from_environment()
    assert str(error.value).startswith(f"GYMQ_{name}: ")
    assert "\n" not in str(error.value)
