"""Rows that Reasoning Gym makes are the same each time and can be scored."""

from __future__ import annotations

import json
import sys

import pytest
from gymq_producers import reasoning_gym

from gymq.errors import UsageError
from gymq.ingest.row_parser import parse_row

pytest.importorskip("reasoning_gym")


def rows(source: str, start: int = 0) -> list[dict]:
    return [json.loads(row) for _, row in reasoning_gym.read(source, start)]


def test_a_row_holds_prompt_entry_and_environment():
    ((where, row),) = reasoning_gym.read("chain_sum?size=1&seed=7")
    got = json.loads(row)
    assert where == "reasoning_gym:chain_sum?size=1&seed=7:1"
    assert set(got) == {"prompt", "entry", "environment"}
    assert set(got["entry"]) == {"question", "answer", "metadata"}
    assert got["prompt"] == got["entry"]["question"]
    assert got["entry"]["metadata"]["source_dataset"] == "chain_sum"
    assert parse_row(row, where=where, environment="x", known=["reasoning_gym"]).environment == "reasoning_gym"


def test_rows_come_out_the_same_with_and_without_a_seed_and_from_any_start():
    assert rows("chain_sum?size=9&seed=7") != rows("chain_sum?size=9")
    assert rows("chain_sum?size=9") == rows("chain_sum?size=9")
    assert rows("chain_sum?size=9", 4) == rows("chain_sum?size=9")[4:]
    assert rows("chain_sum?size=9", 99) == []


def test_parameters_reach_the_data_set():
    assert all(row["entry"]["metadata"]["num_terms"] == 3 for row in rows("chain_sum?size=5&min_terms=3&max_terms=3"))


def test_the_recorded_entry_scores_its_own_answer():
    from reasoning_gym import get_score_answer_fn

    for row in rows("knights_knaves?size=3") + rows("chain_sum?size=3"):
        entry = row["entry"]
        assert get_score_answer_fn(entry["metadata"]["source_dataset"])(entry["answer"], entry) == 1.0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("no_such", "has no 'no_such'"),
        ("chain_sum?sise=3", "has no parameter 'sise'"),
        ("chain_sum?size=-1", "AssertionError"),
        ("chain_sum?min_terms=many", "correct the parameters"),
    ],
)
def test_a_source_that_cannot_be_is_one_line(source: str, said: str):
    with pytest.raises(UsageError) as caught:
        rows(source)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UsageError, match=r"pip install 'gymq\[data\]'"):
        rows("chain_sum")
