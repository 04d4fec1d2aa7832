"""Sampling parameters: what is taken, what is passed on, and what is a slip."""

from __future__ import annotations

import openai.types.chat.completion_create_params as theirs
import pytest

from gymq.errors import DataError, UsageError
from gymq.ingest.sampling import KNOWN, RESERVED, check_sampling
from gymq.local.read_options import read_run_options
from tests.support.rows import parse, reason, sampling

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}


def refusal(given: dict) -> str:
    with pytest.raises(DataError) as caught:
        check_sampling(given, "sampling")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_parameters_of_the_openai_library_are_known_or_ours():
    names = set(theirs.CompletionCreateParamsBase.__annotations__)
    assert names - KNOWN - RESERVED == {"n"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("Temperature", "temperature"),
        ("topP", "top_p"),
        ("top-k", "top_k"),
        ("maxTokens", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("max_output_tokens", "max_tokens"),
        ("stop_sequences", "stop"),
        ("presence_penality", "presence_penalty"),
        ("logprob", "logprobs"),
        ("reponse_format", "response_format"),
        ("num_samples", "n"),
    ],
)
def test_a_name_that_is_nearly_a_known_one_is_refused_with_that_one(name, meant):
    assert refusal({name: 1}).startswith(f"sampling.{name}: did you mean {meant}? If the server knows {name}, write it into")


@pytest.mark.parametrize(
    "name", ["top_a", "min_tokens", "ignore_eos", "guided_json", "mirostat", "xtc_probability", "dry_base"]
)
def test_parameters_that_some_server_may_know_are_passed(name):
    assert check_sampling({name: 1}, "sampling") == {name: 1}


def test_what_stands_in_extra_body_is_passed_whatever_it_is_called():
    given = {"top_p": 0.5, "extra_body": {"temprature": 3, "top_p": 0.1, "seed": None}}
    assert check_sampling(given, "sampling") == {"temprature": 3, "top_p": 0.5}
    assert sampling(parse({"prompt": "Hi", "sampling": {"extra_body": {"temprature": 3}}})) == {"temprature": 3}
    assert refusal({"extra_body": {"messages": []}}) == "sampling.messages is not for a row to set; remove it"
    assert refusal({"extra_body": {"top_p": 2}}) == "sampling.extra_body.top_p: Expected float <= 1.0; correct it"


@pytest.mark.parametrize("n", [2, 0, "1"])
def test_more_than_one_answer_is_what_samples_are_for(n):
    assert refusal({"n": n}) == "sampling.n must be 1; for more answers to a task use --samples, which makes groups"
    assert check_sampling({"n": 1}, "sampling") == {"n": 1}


@pytest.mark.parametrize(
    "form", [FORMAT, {"type": "text"}, {"type": "json_object"}, {"type": "structural_tag", "format": {"type": "any"}}]
)
def test_a_form_for_the_answer_is_passed(form):
    assert check_sampling({"response_format": form}, "sampling") == {"response_format": form}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({}, "sampling.response_format has no type; use text, json_object or json_schema"),
        ({"type": "json_schema"}, "sampling.response_format.json_schema has no name or no schema"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "has no name or no schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": [SCHEMA]}}, "has no name or no schema"),
    ],
)
def test_a_form_that_no_server_takes_is_refused(form, words):
    assert words in refusal({"response_format": form})


def test_a_rows_mistake_is_told_with_its_place():
    assert reason({"prompt": "Hi", "sampling": {"temprature": 1}}).startswith("sampling.temprature: did you mean temperature?")
    bad = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "text"}}}
    said = "sampling.response_format.json_schema.schema.type is 'text'; use one of array, boolean, integer"
    assert reason({"prompt": "Hi", "sampling": {"response_format": bad}}).startswith(said)


def test_a_run_takes_them_from_its_file_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: d\nmodel: scripted\nsampling: {top_p: 0.5, stop: END, temperature: 2}\n")
    given = {"config": str(path), "sampling": ("top_p=0.9", 'stop=["a","b"]', "user=me"), "temperature": 1.0}
    request = read_run_options(given, ("data",))
    assert request.all_sampling == {"top_p": 0.9, "stop": ["a", "b"], "user": "me", "temperature": 1.0}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("top_p",), "--sampling 'top_p': write KEY=VALUE"),
        (("top_p=high",), "sampling.top_p: Expected float"),
        (("n=4",), "use --samples"),
        (("temprature=1",), "did you mean temperature"),
    ],
)
def test_a_runs_mistake_is_told_before_anything_starts(pairs, words):
    with pytest.raises(UsageError, match=words):
        _ = read_run_options({"data": "d", "model": "m", "sampling": pairs}, ()).all_sampling
