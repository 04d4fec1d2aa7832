"""A run's files: whose rollouts OUT holds, what leaves it, and what stays beside it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gymq.client.sink_loop import Ended
from gymq.errors import UsageError
from gymq.local.run_dir import RunDir
from tests.support.rollouts import finished


def folder(tmp_path: Path, *rollouts: tuple[str, str]) -> RunDir:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"".join(msgspec.json.encode(finished(rid, status=status)) + b"\n" for rid, status in rollouts))
    return RunDir(out)


def failed(ended: Ended) -> bool:
    return ended.failed


def test_what_failed_gives_way_and_so_does_what_failed_of_another_run(tmp_path: Path):
    mixed = folder(tmp_path, ("a.0.0", "completed"), ("a.1.0", "failed"), ("a.2.0", "cancelled"), ("b.0.0", "failed"))
    with pytest.raises(UsageError, match="holds rollouts of another run"):
        list(mixed.kept("a"))
    assert [row for row, _, _ in mixed.kept("a", gone=failed)] == [0]
    with mixed.locked():
        assert mixed.drop(failed) == 3
    assert [row for row, _, _ in mixed.kept("a")] == [0]


def test_another_runs_results_are_never_dropped(tmp_path: Path):
    other = folder(tmp_path, ("b.0.0", "completed"))
    with pytest.raises(UsageError, match=r"another run \(ENV: weather → dice; --max-turns: 30 → 9\)"), other.locked():
        other.enter("b", {"environment": "weather", "max_turns": 30})
        list(other.kept("a", {"environment": "dice", "max_turns": 9}, failed))
    (tmp_path / "out.jsonl.gymq" / "run.json").unlink()
    with pytest.raises(UsageError, match=r"another run \(ENV: weather → dice\)"):
        list(other.kept("a", {"environment": "dice", "max_turns": 9}))
    with pytest.raises(UsageError, match=r"another run \('b'\), whose options are not known"):
        list(other.kept("a", {"environment": "weather", "max_turns": 9}))


def test_a_definition_stays_as_long_as_there_is_something_that_it_defines(tmp_path: Path):
    for rollouts, left in [((), []), ((("a.0.0", "completed"),), ["out.jsonl", "out.jsonl.gymq", "run.json"])]:
        one = folder(tmp_path, *rollouts)
        with one.locked():
            one.enter("a", {})
        assert sorted(entry.name for entry in tmp_path.rglob("*")) == left


@pytest.mark.parametrize(("name", "kind"), [("out.jsonl", "is a folder"), ("out.parquet", "is no folder of Parquet parts")])
def test_an_output_of_another_kind_is_refused(tmp_path: Path, name: str, kind: str):
    if name == "out.jsonl":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=kind):
        RunDir(tmp_path / name)
