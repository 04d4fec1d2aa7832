"""The options of the backend `openai`, and how it knows an overflow."""

from __future__ import annotations

import pytest
from gymq_workers.model.openai import endpoint
from gymq_workers.model.openai.backend import OpenAIBackend
from gymq_workers.model.scripted_backend import ScriptedBackend

from gymq.api.limiter import Learning
from gymq.errors import UsageError


def test_options_that_make_no_sense_are_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for model, options, words in [
        ("", {}, "name is missing"),
        ("m", {}, "OPENAI_API_KEY is not set"),
        ("m", {"base_url": "localhost:8000"}, "must look like"),
        ("m", {"base_url": "http://key@host/v1"}, "OPENAI_API_KEY"),
        ("m", {"base_url": "http://host/v1", "api": "completions"}, "chat or responses or generate"),
        ("m", {"base_url": "http://host/v1", "timeout": "soon"}, "timeout is 'soon'"),
        ("m", {"base_url": "http://host/v1", "timeout": 0}, "timeout"),
        ("m", {"base_url": "http://host/v1", "retries": -1}, "retries"),
        ("m", {"base_url": f"http://{'a' * 70}.example/v1"}, "must look like"),
        ("m", {"base_url": "http://host/v1", "rpm": "many"}, "rpm is 'many'"),
        ("m", {"base_url": "http://host/v1", "tpm": 0}, "tpm is 0"),
        ("m", {"base_url": "http://host/v1", "rpm": "inf"}, "rpm"),
        ("m", {"base_url": "http://host/v1", "learn": "maybe"}, "learn is 'maybe'; set it to true or false"),
        ("m", {"base_url": "http://host/v1", "min_rpm": -1}, "min_rpm is -1; set it to a number above 0"),
    ]:
        with pytest.raises(UsageError, match=words):
            OpenAIBackend(model, options)


def test_the_environment_says_where_the_server_is(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere:8000/v1/")
    assert str(OpenAIBackend("m", {}).limited()[0].url) == "http://elsewhere:8000/v1/chat/completions"
    assert (
        str(OpenAIBackend("m", {"base_url": "http://here/v1", "api": "responses"}).limited()[0].url)
        == "http://here/v1/responses"
    )


def test_limits_are_of_an_address_a_model_and_a_key(monkeypatch):
    def account(model="m", key="k", base="http://host/v1", **options):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        return OpenAIBackend(model, {"base_url": base, **options}).limited()[0].account()

    others = [account("n"), account(key="l"), account(base="http://other/v1"), account(base="http://host/v2")]
    assert account() == account(base="http://host/v1/", rpm=3, timeout=5)
    assert len({account(), *others}) == 5


def test_who_is_not_limited_takes_no_limits():
    for option in ("rpm", "tpm", "learn", "min_rpm"):
        with pytest.raises(UsageError, match=f"scripted: {option} has no effect on this backend; remove it"):
            ScriptedBackend("", {option: "3"})


def test_what_refusals_change_is_an_option():
    def learning(**options):
        return OpenAIBackend("m", {"base_url": "http://host/v1", **options}).learning

    assert learning() == Learning(enabled=True, lowest=0.0)
    assert learning(learn="false", min_rpm="90") == Learning(enabled=False, lowest=1.5)


def test_a_key_that_is_none_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-line\r\nX: secret")
    with pytest.raises(UsageError) as caught:
        OpenAIBackend("m", {"base_url": "http://host/v1"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 8545 tokens.",
        "too long; context_length_exceeded; invalid_request_error",
        "The decoder prompt (length 8867) is longer than the maximum model length of 8192.",
        "prompt is too long: 213462 tokens > 200000 maximum",
        "Your input exceeds the context window of this model",
        "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575)",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens",
        "Please reduce the length of the messages or completion",
        "the request exceeds the available context size, try increasing it; exceed_context_size_error",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens",
    ],
)
def test_servers_say_in_many_ways_that_a_prompt_does_not_fit(text):
    assert endpoint._OVERFLOW.search(text)


@pytest.mark.parametrize(
    "text", ["Invalid value for temperature", "Request Entity Too Large", "max_tokens must be at least 1", "Invalid image"]
)
def test_other_refusals_are_no_overflow(text):
    assert not endpoint._OVERFLOW.search(text)
