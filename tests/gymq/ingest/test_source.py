"""A source's name says who reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gymq import plugins
from gymq.errors import DataError, UnknownName, UsageError
from gymq.ingest.source import fingerprint, open_source, rows


@pytest.mark.parametrize(
    ("name", "producer"),
    [
        ("a.jsonl", "jsonl"),
        ("a.json", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.parquet", "parquet"),
        ("A.PARQUET", "parquet"),
        ("odd:name.jsonl", "jsonl"),
    ],
)
def test_a_file_goes_by_its_suffix(tmp_path: Path, name: str, producer: str):
    (tmp_path / name).touch()
    assert open_source(str(tmp_path / name)) == (producer, str(tmp_path / name))
    assert callable(plugins.load(plugins.PRODUCERS, producer))


@pytest.mark.parametrize("mark", ["dataset_info.json", "state.json", "dataset_dict.json"])
def test_a_folder_that_datasets_saved_is_known_by_its_files(tmp_path: Path, mark: str):
    (tmp_path / mark).touch()
    assert open_source(str(tmp_path)) == ("datasets", str(tmp_path))


def test_a_prefix_names_the_producer():
    assert open_source("reasoning_gym:chain_sum?size=5") == ("reasoning_gym", "chain_sum?size=5")
    assert open_source("jsonl:rows.txt") == ("jsonl", "rows.txt")


def test_what_nobody_reads_is_one_line(tmp_path: Path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(UsageError, match="no producer is known"):
        open_source(str(tmp_path / "a.csv"))
    with pytest.raises(UsageError, match="no producer is known"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        open_source(str(tmp_path / "gone.jsonl"))
    with pytest.raises(UnknownName, match="no producer 'nosuch'; installed: "):
        open_source("nosuch:thing")


def test_a_producer_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugins, "points", lambda group: {})
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(UnknownName, match="unknown producer 'jsonl'"):
        open_source(str(tmp_path / "a.jsonl"))


def test_a_fingerprint_tells_what_a_file_holds_not_where_it_lies(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "c.jsonl").write_text('{"prompt": "y"}\n')
    one, same, other = (fingerprint(str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert one == same != other


def test_a_folders_fingerprint_is_of_its_files(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
        (tmp_path / name / "data.arrow").write_text("rows")
    assert fingerprint(str(tmp_path / "one")) == fingerprint(str(tmp_path / "two"))
    (tmp_path / "two" / "data.arrow").write_text("other")
    assert fingerprint(str(tmp_path / "one")) != fingerprint(str(tmp_path / "two"))


def test_what_is_no_file_is_known_by_its_name():
    assert fingerprint("reasoning_gym:chain_sum?size=5") == fingerprint("reasoning_gym:chain_sum?size=5")
    assert fingerprint("reasoning_gym:chain_sum?size=5") != fingerprint("reasoning_gym:chain_sum?size=6")


def test_rows_come_from_the_producer_that_reads_the_source(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    places = [place for place, _ in rows(str(tmp_path / "a.jsonl"))]
    assert places == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:2"]
