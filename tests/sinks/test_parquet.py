"""The Parquet sink: parts appear whole, each rollout stands in one, and they can be read by anybody."""

from __future__ import annotations

import errno
import fcntl
import json
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymq_sinks import parquet
from gymq_sinks.parquet import ParquetSink
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gymq.client.sink_loop import Ended
from gymq.errors import DataError, GymqError, SinkBusy, UsageError
from gymq.wire.record import RolloutRecord
from tests.support.sink_rollouts import fresh, rollout, rollouts
from tests.support.tiers import examples


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "parts"


def opened(path, backlog: int = 10_000) -> ParquetSink:
    sink = ParquetSink(path, "r")
    sink.backlog = backlog
    sink.open()
    sink.begin(False)
    return sink


def write(path, *batches) -> ParquetSink:
    """Open, write each batch as a part of its own, close."""
    sink = opened(path)
    for batch in batches:
        sink.write(fresh(sink, batch))
        sink.commit()
    sink.close()
    return sink


def rows(path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def ids(path) -> list[str]:
    return [row["rollout_id"] for row in rows(path)]


def test_a_part_is_named_after_its_first_and_last_entry(path):
    sink = write(path, rollouts(3), rollouts(2, start=3))
    assert sorted(part.name for part in path.glob("*.parquet")) == ["part-1000-0_1000-2.parquet", "part-1000-3_1000-4.parquet"]
    assert ids(path) == [f"r.{i}.0" for i in range(5)]
    assert sink.written == 5


def test_the_columns_are_typed_and_what_differs_in_shape_is_json(path):
    # Given rollouts whose content, tasks and errors have nothing in common
    parts = [{"type": "text", "text": "é"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    write(
        path,
        [
            rollout(0, messages=[{"role": "user", "content": "hi"}], task={"answer": 4, "nested": {"a": [1, "b", None]}}),
            rollout(
                1,
                messages=[{"role": "user", "content": parts}],
                task={"answer": "four"},
                stop="max_turns",
                reward=0.5,
                versions=[3, 5],
            ),
            rollout(2, status="failed", reward=None, error={"kind": "tool", "message": "broke"}, rewards={"a": 1.0}),
        ],
    )
    # When they are read
    table = pq.read_table(path)
    first, second, third = table.to_pylist()
    # Then scalars are scalars, and the rest is JSON
    types = {field.name: field.type for field in table.schema}
    assert types["reward"] == types["started_at"] == types["finished_at"] == pa.float64()
    assert types["sample"] == types["turns"] == types["tool_calls"] == pa.int32()
    assert types["seq"] == types["usage_input_tokens"] == types["usage_reasoning_tokens"] == pa.int64()
    assert {types[name] for name in ("rollout_id", "status", "error_kind", "messages", "calls", "task")} == {pa.string()}
    assert json.loads(first["task"]) == {"answer": 4, "nested": {"a": [1, "b", None]}}
    assert json.loads(second["messages"])[0]["content"] == parts
    assert (first["versions"], second["versions"]) == (None, [3, 5])
    assert (second["stop"], second["reward"], first["reward"], first["error_kind"]) == ("max_turns", 0.5, 1.0, None)
    assert (third["reward"], third["error_kind"], third["error_message"]) == (None, "tool", "broke")
    assert json.loads(third["rewards"]) == {"a": 1.0}
    assert (third["run"], third["group_id"], third["sample"], third["seq"]) == ("r", "r.2", 0, 3)


def test_every_field_of_a_record_has_a_column(path):
    write(path, [rollout(0)])
    columns = set(pq.read_table(path).column_names)
    for field, value in rollout(0).data.items():
        names = {f"usage_{name}" for name in value} if field == "usage" else {field}
        assert columns >= ({"error_kind", "error_message"} if field == "error" else names)


def test_what_the_parts_hold_is_not_written_again(path):
    write(path, rollouts(2), rollouts(1, start=2))
    again = write(path, rollouts(5))
    assert (again.written, again.newest) == (2, 3)
    assert ids(path) == [f"r.{i}.0" for i in range(5)]
    assert write(path, rollouts(5)).written == 0
    assert len(list(path.glob("*.parquet"))) == 3


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.booleans()), max_size=6))
def test_whatever_comes_again_each_rollout_stands_in_one_part(tmp_path_factory, batches):
    # Given sinks, one after another, of which some die before they commit
    path = tmp_path_factory.mktemp("parts")
    kept: set[str] = set()
    for start, count, commits in batches:
        sink = opened(path)
        sink.write(fresh(sink, rollouts(count, start)))
        if commits:
            sink.commit()
            kept |= {f"r.{i}.0" for i in range(start, start + count)}
        sink.close()
    # When a last one gets everything
    write(path, rollouts(13))
    # Then nothing is missing or there twice
    assert sorted(ids(path)) == sorted(f"r.{i}.0" for i in range(13))


def test_leftovers_of_a_death_are_removed(path):
    write(path, rollouts(1))
    left = path / ".writing-aabbccddeeff"
    left.mkdir()
    (left / "part-1000-7_1000-9.parquet").write_bytes(b"PAR1 torn")
    sink = write(path, rollouts(2))
    assert sink.written == 1
    assert sorted(part.name for part in path.iterdir()) == [".lock", "part-1000-0_1000-0.parquet", "part-1000-1_1000-1.parquet"]


def test_a_writer_on_another_host_that_was_replaced_finishes_no_part(path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    old, new = opened(path), ParquetSink(path, "r")
    old.write(rollouts(2))
    new.open()
    old.commit()
    old.write(rollouts(1, start=2))
    new.begin(True)
    assert len(new.seen) == 2
    with pytest.raises(SinkBusy, match="another process has taken this folder over"):
        old.commit()
    new.write(rollouts(1, start=2))
    new.commit()
    new.close()
    old.close()
    assert ids(path) == ["r.0.0", "r.1.0", "r.2.0"]


def test_a_part_whose_name_the_disk_refused_is_taken_away_again(path, monkeypatch):
    sink = opened(path)
    sink.write(rollouts(1))

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "sync_folder", fail)
        with pytest.raises(GymqError, match="Input/output error"):
            sink.commit()
    sink.close()
    assert write(path, rollouts(1)).written == 1


def test_a_part_is_written_when_it_is_large_or_old_and_not_because_nothing_comes(path, monkeypatch):
    monkeypatch.setattr(parquet, "PART_ROWS", 4)
    sink = opened(path)
    sink.write(rollouts(3))
    assert not sink.due(1.0, True)
    assert sink.due(parquet.PART_SECONDS, False)
    sink.write(rollouts(1, start=3))
    assert sink.due(0.0, False)
    sink.commit()
    monkeypatch.setattr(parquet, "PART_BYTES", 100)
    assert not sink.due(0.0, False)
    sink.write(rollouts(1, start=4))
    assert sink.due(0.0, False)
    sink.close()


def test_a_part_never_holds_up_a_run_whose_backlog_is_small(path):
    sink = opened(path, backlog=10)
    sink.write(rollouts(4))
    assert not sink.due(0.0, False)
    sink.write(rollouts(1, start=4))
    assert sink.due(0.0, False)
    sink.close()


def test_a_second_writer_is_refused(path):
    first = opened(path)
    with pytest.raises(SinkBusy, match="another process writes this folder"):
        opened(path)
    first.close()
    opened(path).close()


def test_a_folder_of_another_run_is_refused(path):
    write(path, rollouts(1))
    with pytest.raises(DataError, match="is of run 'r', not 'other'; choose"):
        ParquetSink(path, "other").open()
    opened(path).close()


def test_a_folder_of_something_else_is_refused(path):
    path.mkdir(parents=True)
    (path / "rows.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"rows.parquet: is no part of gymq's"):
        opened(path)
    pq.write_table(pa.table({"a": [1]}), path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows.parquet: is no part of gymq's"):
        opened(path)


def test_a_file_in_its_place_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(GymqError, match="cannot be written: File exists; choose another --out"):
        opened(tmp_path / "file")


def test_without_pyarrow_it_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'gymq\[data\]'"):
        opened(path)
    assert not path.exists()


def test_the_records_come_back_as_they_were_written(path):
    odd = rollout(1, status="failed", error={"kind": "model", "message": "é"}, reward=None, versions=[1, 2], task={"a": [1]})
    write(path, [rollout(0), odd], rollouts(2, start=2))
    sink = ParquetSink(path, "r")
    made = [rollout(0), odd, *rollouts(2, start=2)]
    decode = msgspec.json.Decoder(RolloutRecord).decode
    assert [decode(record) for record in sink.records()] == [decode(one.json) for one in made]
    assert msgspec.json.decode(next(sink.records(("rollout_id", "usage")))).keys() == {"rollout_id", "usage"}
    assert list(sink.ended())[1] == Ended("r.1.0", "weather", "failed")


def test_what_is_dropped_gives_way_and_the_others_stay_as_they_were(path):
    write(path, rollouts(3), rollouts(2, start=3), rollouts(2, start=5))
    before = rows(path)
    gone = ("r.1.0", "r.3.0", "r.4.0")
    sink = ParquetSink(path, "r")
    sink.claim()
    assert sink.drop(lambda ended: ended.rollout_id in gone) == 3
    sink.close()
    assert rows(path) == [row for row in before if row["rollout_id"] not in gone]
    assert len(list(path.glob("*.parquet"))) == 2
    assert write(path, rollouts(7)).written == 3
    assert sorted(ids(path)) == [f"r.{i}.0" for i in range(7)]
