"""What tokens cost: the table, the sum by hand, and where it is shown."""

from __future__ import annotations

import json

import pytest

from gymq.errors import UsageError
from gymq.ops.summary import read
from gymq.wire.calls import Usage
from gymq.wire.pricing import Price, Prices

TABLE = """
currency: EUR
models:
  openai:big: {input: 2.0, cached_input: 0.5, output: 8.0}
  "small-*": {input: 1, output: 4}
  "*": {input: 0, output: 0}
"""


def test_a_cost_is_the_sum_over_what_was_sent_cached_and_answered(tmp_path):
    (tmp_path / "prices.yaml").write_text(TABLE)
    prices = Prices.read(str(tmp_path / "prices.yaml"))
    assert prices.currency == "EUR"
    assert prices.cost("openai:big", Usage(1_000_000, 500_000, 400_000)) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.5 * 8)
    assert prices.cost("azure:small-3", Usage(3_000_000, 0, 1_000_000)) == pytest.approx(3.0)
    assert prices.cost("scripted", Usage(5, 5)) == 0.0
    assert Price(1.0, 2.0, 0.0).of(Usage(10, 0, 20)) == 0.0  # a server that says it cached more than it was sent


def test_a_name_counts_before_patterns_and_of_these_the_first():
    prices = Prices.read(
        {"models": {"m*": {"input": 1, "output": 1}, "my*": {"input": 2, "output": 2}, "mya": {"input": 3, "output": 3}}}
    )
    assert [prices.price(f"openai:{name}").input for name in ("mx", "myb", "mya")] == [1, 1, 3]
    assert prices.price("openai:other") is None
    assert prices.cost("openai:other", Usage(1, 1)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [", "is not YAML"),
        ("[]", "Expected object, got array"),
        ("models: {a: {input: 1}}", "missing required field output - at $.models"),
        ("models: {a: {input: -1, output: 1}}", "Expected float >= 0"),
        ("models: {a: {input: .nan, output: 1}}", "Expected float"),
        ("models: {a: {input: 1, output: 1, cached: 1}}", "unknown field cached"),
        ("currency: ''\nmodels: {}", "length >= 1"),
        ("model: {}", "unknown field model"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_in_one_line(tmp_path, text, words):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        Prices.read(str(path))
    said = str(caught.value)
    assert said.startswith(f"{path}:")
    assert "\n" not in said
    assert words in said.replace("`", "")
    with pytest.raises(UsageError, match="No such file"):
        Prices.read(str(tmp_path / "none"))


def test_a_files_tokens_are_told_by_model_and_a_judges_apart(tmp_path):
    path = tmp_path / "out.jsonl"
    record = {
        "environment": "e", "model": "openai:big", "group_id": "r.0", "status": "completed", "reward": 1.0,
        "no_reward": None, "turns": 1, "usage": {"input_tokens": 10, "output_tokens": 3, "cached_tokens": 4}, "error": None,
        "started_at": 1.0, "finished_at": 2.0,
        "calls": [
            {"call": "1.0", "kind": "generate", "input_tokens": 10, "output_tokens": 3},
            {"call": "2.0", "kind": "verify", "worker": "w"},
            {"call": "3.0", "kind": "ask", "name": "openai:judge", "input_tokens": 7, "output_tokens": 2},
            {"call": "3.0", "kind": "ask", "name": "openai:judge", "fault": {"kind": "model", "message": "no"}},
        ],
    }  # fmt: skip
    path.write_text((json.dumps(record) + "\n") * 2)
    assert read(path).tokens == {"openai:big": Usage(20, 6, 8), "openai:judge": Usage(14, 4, 0)}
