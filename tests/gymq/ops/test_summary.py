"""The summary's numbers, against numbers worked out by hand."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from gymq.errors import DataError
from gymq.ops.summary import VERDICT, Summary, ks, read


def row(group: int, reward: float | None, **more: object) -> dict:
    return {
        "environment": "weather",
        "model": "openai:x",
        "group_id": f"r.{group}",
        "status": "completed",
        "reward": reward,
        "no_reward": None,
        "turns": 2,
        "usage": {"input_tokens": 10, "output_tokens": 3},
        "error": None,
        "started_at": 100.0,
        "finished_at": 101.0,
        **more,
    }


def write(path: Path, rows: list[dict], end: str = "") -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + end)
    return path


def test_rewards_turns_and_tokens_are_summed_over_what_has_them(tmp_path: Path):
    failed = row(1, None, status="failed", error={"kind": "model", "message": "refused"}, turns=0)
    total = read(write(tmp_path / "out", [row(0, 1.0), row(0, 0.25), failed, row(1, 0.0, status="truncated")])).total
    assert (total.rollouts, total.scored) == (4, 3)
    assert total.mean_reward == pytest.approx(1.25 / 3)
    assert total.mean_turns == 1.5
    assert (total.input_tokens, total.output_tokens) == (40, 12)
    assert total.by_status == {"completed": 2, "failed": 1, "truncated": 1}
    assert (total.failures, total.first_error) == ({"model": 1}, "refused")


def test_what_a_verifier_should_have_scored_is_counted_by_reason(tmp_path: Path):
    rows = [
        row(0, 1.0),
        row(0, None, no_reward="verifier: TypeError: 'int' object is not callable (dice.py:9)"),
        row(1, None, no_reward="verifier: KeyError: 'x' (dice.py:12)", status="truncated"),
        row(1, None, no_reward="unavailable: the judge is down (sent 11 times)"),
        row(2, None, no_reward="the verifier gave no reward"),
        row(2, None),
        row(3, None, no_reward="the environment has no verifier"),
        row(3, None, status="failed", error={"kind": "model", "message": "refused"}),
        row(3, None, status="cancelled", error={"kind": "cancelled", "message": "cancelled"}),
    ]
    total = read(write(tmp_path / "out", rows)).total
    assert total.unrewarded == {"verifier": 2, "unavailable": 1, VERDICT: 2}
    assert total.first_unrewarded == "verifier: TypeError: 'int' object is not callable (dice.py:9)"


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (4, 1), (5, 2), (8, 8), (6, 0)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_success(n: int, c: int):
    summary = Summary(groups={"a": (n, c)})
    for k in range(1, n + 1):
        choices = list(combinations(range(n), k))
        assert summary.pass_at(k) == pytest.approx(sum(min(choice) < c for choice in choices) / len(choices))


def test_pass_at_k_leaves_out_tasks_with_fewer_scored_samples():
    summary = Summary(groups={"a": (4, 2), "b": (1, 0)})
    assert summary.pass_at(1) == pytest.approx((0.5 + 0) / 2)
    assert summary.pass_at(4) == 1.0
    assert summary.pass_at(5) is None


def test_a_success_is_a_reward_of_one_or_more(tmp_path: Path):
    total = read(write(tmp_path / "out", [row(0, 0.99), row(1, 1.0), row(2, 3.0)])).total
    assert total.pass_at(1) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("samples", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_k_goes_in_powers_of_two_up_to_the_samples(samples: int, expected: list[int]):
    assert ks(samples) == expected


def test_the_rate_is_of_what_ended_since_then(tmp_path: Path):
    old = row(0, 1.0, started_at=1.0, finished_at=5.0)
    new = [row(i, 1.0, started_at=100.0 + i, finished_at=102.0 + i) for i in range(3)]
    path = write(tmp_path / "out", [old, *new])
    assert read(path, since=50).total.rate == pytest.approx(3 / 4)
    assert read(path).total.rate == pytest.approx(4 / 103)
    assert read(path, since=1000).total.rate is None


def test_environments_are_told_apart_and_scripted_models_are_known(tmp_path: Path):
    path = write(tmp_path / "out", [row(0, 1.0), row(1, 0.0, environment="counter")])
    report = read(path)
    assert list(report.environments) == ["counter", "weather"]
    assert report.environments["weather"].mean_reward == 1.0
    assert not report.scripted
    assert read(write(tmp_path / "s", [row(0, 1.0, model="scripted:x")])).scripted


def test_a_torn_last_line_does_not_count_and_a_strange_one_is_refused(tmp_path: Path):
    assert read(write(tmp_path / "out", [row(0, 1.0)], end='{"rollout_id":')).total.rollouts == 1
    with pytest.raises(DataError, match="out:2: is no finished rollout"):
        read(write(tmp_path / "out", [row(0, 1.0)], end="{}\n"))
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "gone")
