"""A run's file as a sequence of rollouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gymq.client.output import output_sink
from gymq.script.run_result import RunResult
from gymq.wire.rollout import Rollout
from tests.support.rollouts import finished


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    """Four rollouts of two tasks, in the order in which they ended, and a torn line."""
    ended = [
        finished("r.1.0", reward=0.0, task={"id": "b"}),
        finished("r.0.1", reward=1.0, task={"id": "a"}, messages=[{"role": "user", "content": "hé"}]),
        finished("r.1.1", reward=None, status="failed", error={"kind": "model", "message": "refused"}),
        finished("r.0.0", reward=0.5, task={"id": "a"}, seq=4),
    ]
    out = tmp_path / "out.jsonl"
    out.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in ended) + '{"rollout_id":"r.2')
    return RunResult(out, 6, bad=1)


def test_rollouts_stand_by_task_and_sample(result: RunResult):
    assert [rollout.id for rollout in result] == ["r.0.0", "r.0.1", "r.1.0", "r.1.1"]
    assert result[1].messages == [{"role": "user", "content": "hé"}]
    assert result[-1].status == "failed"
    assert [rollout.sample for rollout in result[1:3]] == [1, 0]
    assert result[0].seq == 4
    assert [group.rewards for group in result.groups] == [[0.5, 1.0], [0.0, None]]
    with pytest.raises(IndexError):
        result[4]


async def test_it_can_be_iterated_in_a_loop(result: RunResult):
    assert [rollout.row async for rollout in result] == [0, 0, 1, 1]


def test_numbers_are_those_of_the_summary(result: RunResult):
    assert result.mean_reward == 0.5
    assert result.summary.failures == {"model": 1}
    assert repr(result) == "<RunResult: 4 of 6 rollouts, mean reward 0.500, 3 completed, 1 failed, 1 bad rows>"


def test_a_table_has_a_row_for_each_rollout(result: RunResult):
    table = result.to_pandas()
    assert list(table["rollout_id"]) == ["r.0.0", "r.0.1", "r.1.0", "r.1.1"]
    assert list(table["error.kind"])[3] == "model"
    assert {"task.id", "usage.output_tokens", "messages"} <= set(table.columns)
    assert not {"calls", "error"} & set(table.columns)


def test_a_run_without_a_rollout_is_empty(tmp_path: Path):
    nothing = RunResult(tmp_path / "gone.jsonl", 3)
    assert (len(nothing), list(nothing), nothing.mean_reward, nothing.groups) == (0, [], None, [])


def test_parquet_parts_are_read_like_a_file(result: RunResult, tmp_path: Path):
    sink = output_sink(tmp_path / "out.parquet", "r")
    sink.open()
    sink.begin(False)
    sink.write([Rollout(one.id, one.json, False, b"1-%d" % one.seq, one.seq) for one in result])
    sink.commit()
    sink.close()
    again = RunResult(tmp_path / "out.parquet", 6)
    assert [rollout.data for rollout in again] == [rollout.data for rollout in result]
    assert again.mean_reward == 0.5
