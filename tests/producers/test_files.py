"""Files of rows: JSON Lines, Parquet, saved data sets."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gymq_producers import hf_datasets, jsonl, parquet

from gymq.errors import DataError, UsageError
from gymq.ingest.row_parser import parse_row

Read = Callable[..., Iterator[tuple[str, bytes]]]
ROWS = [{"prompt": f"Say {number}", "answer": number, "parts": [{"a": None}]} for number in range(1000)]


def write_jsonl(folder: Path, rows: list[Any]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def write_gzip(folder: Path, rows: list[Any]) -> str:
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(folder / "rows.jsonl.gz")


def write_parquet(folder: Path, rows: list[Any]) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=300
    )
    return str(folder / "rows.parquet")


def write_dataset(folder: Path, rows: list[Any]) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return str(folder / "saved")


KINDS = [
    pytest.param(jsonl.read, write_jsonl, id="jsonl"),
    pytest.param(jsonl.read, write_gzip, id="gzip"),
    pytest.param(parquet.read, write_parquet, id="parquet"),
    pytest.param(hf_datasets.read, write_dataset, id="datasets"),
]


@pytest.mark.parametrize(("read", "write"), KINDS)
def test_rows_come_in_order_each_with_its_place(tmp_path: Path, read: Read, write: Callable[[Path, list[Any]], str]):
    source = write(tmp_path, ROWS)
    got = list(read(source))
    assert [json.loads(row) for _, row in got] == ROWS
    assert [where for where, _ in got] == [f"{source}:{number}" for number in range(1, 1001)]


@pytest.mark.parametrize(("read", "write"), KINDS)
@pytest.mark.parametrize("start", [1, 255, 256, 299, 300, 301, 599, 999, 1000, 5000])
def test_reading_can_start_at_any_row(tmp_path: Path, read: Read, write: Callable[[Path, list[Any]], str], start: int):
    source = write(tmp_path, ROWS)
    expected = [(f"{source}:{row['answer'] + 1}", row) for row in ROWS[start:]]
    got = []
    for where, row in read(source, start):
        got.append((where, json.loads(row)))
        if len(got) == 3:
            break
    assert got == expected[:3]


@pytest.mark.parametrize(("read", "write"), KINDS)
def test_rows_of_any_file_become_tasks(tmp_path: Path, read: Read, write: Callable[[Path, list[Any]], str]):
    where, row = next(read(write(tmp_path, ROWS)))
    task = parse_row(row, where=where, environment="e", known=["e"])
    assert task.encoded == [b'{"role":"user","content":"Say 0"}']
    assert task.data == {"answer": 0, "parts": [{"a": None}]}


@pytest.mark.parametrize("read", [jsonl.read, parquet.read, hf_datasets.read])
def test_a_source_that_is_not_there_is_one_line(tmp_path: Path, read: Read):
    with pytest.raises(DataError) as caught:
        next(read(str(tmp_path / "gone")))
    assert str(caught.value).startswith(f"{tmp_path / 'gone'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [jsonl.read, parquet.read, hf_datasets.read])
def test_a_source_of_another_kind_is_one_line(tmp_path: Path, read: Read):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"\xff\xfe\x00\x01 nothing of the kind")
    for name in ("folder", "file"):
        with pytest.raises(DataError) as caught:
            next(read(str(tmp_path / name)))
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)


# --- JSON Lines ---


def lines(folder: Path, data: bytes, name: str = "rows.jsonl") -> list[tuple[str, bytes]]:
    (folder / name).write_bytes(data)
    return [(where.rpartition(":")[2], row) for where, row in jsonl.read(str(folder / name))]


def test_empty_lines_are_skipped_but_counted_in_places(tmp_path: Path):
    assert lines(tmp_path, b"\n  \n{}\r\n\n{}\n") == [("3", b"{}"), ("5", b"{}")]


def test_the_last_line_needs_no_end_and_the_first_may_have_a_mark(tmp_path: Path):
    assert lines(tmp_path, b"\xef\xbb\xbf{}\n{}") == [("1", b"{}"), ("2", b"{}")]


def test_separators_inside_text_do_not_end_a_line(tmp_path: Path):
    assert len(lines(tmp_path, '{"a": "x\u2028y\u0085z\x0c"}\n'.encode())) == 1


def test_rows_that_are_no_json_are_still_given(tmp_path: Path):
    assert lines(tmp_path, b"nonsense\n[1]\n") == [("1", b"nonsense"), ("2", b"[1]")]


def test_an_empty_file_has_no_rows(tmp_path: Path):
    assert lines(tmp_path, b"") == []


def test_one_large_json_list_is_refused_with_a_way_out(tmp_path: Path):
    with pytest.raises(DataError, match="is one JSON list"):
        lines(tmp_path, b"[\n {}\n]\n", "rows.json")


def test_a_damaged_gzip_gives_its_whole_rows_and_then_says_so(tmp_path: Path):
    import random

    text = "".join(json.dumps({"a": random.Random(number).random()}) + "\n" for number in range(5000))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(text.encode())[:-2000])
    got = []
    with pytest.raises(DataError, match="is not a whole gzip file"):
        got.extend(row for row in jsonl.read(str(tmp_path / "cut.jsonl.gz")))


def test_what_is_compressed_is_known_by_its_first_bytes_not_by_its_name(tmp_path: Path):
    assert lines(tmp_path, b'{"a":1}', "plain.jsonl.gz") == lines(tmp_path, gzip.compress(b'{"a":1}'), "packed.jsonl")


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jsonl, "MAX_LINE", 100)
    with pytest.raises(DataError, match=r":2: the line is longer"):
        lines(tmp_path, b"x" * 99 + b"\n" + b"y" * 101)


# --- Parquet and data sets ---


def test_dates_bytes_and_missing_numbers_become_json(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet_files = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {
            "when": pyarrow.array([0], pyarrow.timestamp("ms")),
            "fine": pyarrow.array([1], pyarrow.timestamp("ns")),
            "data": [b"x"],
            "score": [float("nan")],
            "map": pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        }
    )
    parquet_files.write_table(table, tmp_path / "rows.parquet")
    ((_, row),) = parquet.read(str(tmp_path / "rows.parquet"))
    got = json.loads(row)
    assert got["when"].startswith("1970-01-01T00:00")
    assert got["fine"].startswith("1970-01-01")
    assert (got["data"], got["score"], got["map"]) == ("eA==", None, [["a", 1]])


def test_a_folder_of_several_splits_says_which_there_are(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_list(ROWS[:3])
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="holds the splits train, test"):
        next(hf_datasets.read(str(tmp_path / "saved")))
    assert len(list(hf_datasets.read(str(tmp_path / "saved" / "test")))) == 3


@pytest.mark.parametrize(("read", "library"), [(parquet.read, "pyarrow"), (hf_datasets.read, "datasets")])
def test_a_missing_library_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Read, library: str
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'gymq\[data\]'"):
        next(read(str(tmp_path)))
