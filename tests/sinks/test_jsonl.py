"""The JSONL sink: the file is the commit record, whatever happens to the process that writes it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from collections.abc import Callable

import pytest
from gymq_sinks import jsonl
from gymq_sinks.jsonl import JsonlSink
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gymq.client import sink_loop
from gymq.client.sink_loop import Ended
from gymq.errors import DataError, GymqError, SinkBusy
from tests.support.sink_rollouts import fresh, rollout, rollouts
from tests.support.tiers import examples


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "out.jsonl"


def write(path, count: int, start: int = 0) -> JsonlSink:
    """Open, write some rollouts, commit, close."""
    sink = JsonlSink(path, "r")
    sink.open()
    sink.begin(False)
    sink.write(fresh(sink, rollouts(count, start)))
    sink.commit()
    sink.close()
    return sink


def test_each_rollout_is_one_line(path):
    sink = write(path, 3)
    assert path.read_bytes() == b"".join(one.json + b"\n" for one in rollouts(3))
    assert (sink.written, sink.newest) == (3, 0)


def test_what_is_there_is_not_written_again(path):
    write(path, 3)
    again = write(path, 5)
    assert (again.written, again.newest) == (2, 3)
    assert path.read_bytes() == b"".join(one.json + b"\n" for one in rollouts(5))


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000))
def test_wherever_a_death_tore_the_file_it_is_made_whole(tmp_path, cut):
    # Given a file of four lines that ends anywhere
    path = tmp_path / "torn.jsonl"
    path.unlink(missing_ok=True)
    write(path, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    # When a sink goes on and everything that is not acknowledged comes again
    write(path, 4)
    # Then each rollout stands there once
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_second_writer_is_refused_and_the_first_goes_on(path):
    first, second = JsonlSink(path, "r"), JsonlSink(path, "r")
    first.open()
    with pytest.raises(SinkBusy, match="another process writes this file"):
        second.open()
    first.write(rollouts(2))
    first.close()
    second.open()
    second.close()
    assert len(path.read_bytes().splitlines()) == 2


def test_a_writer_on_another_host_that_was_replaced_writes_into_no_file(path, monkeypatch):
    # Given a file system where locks do not reach the other host, and a process there that holds the file open
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    old, new = JsonlSink(path, "r"), JsonlSink(path, "r")
    old.open()
    old.begin(False)
    old.write(rollouts(2))
    # When this one takes over, and the other has written a line and a half meanwhile
    new.open()
    old.write([rollout(2)])
    os.write(old._file, b'{"rollout_id":"r.')
    new.begin(True)
    # Then what was whole counts, and nothing that the other writes from now on stands there
    assert len(new.seen) == 3
    old.write([rollout(7)])
    new.write([rollout(3)])
    for sink in (old, new):
        sink.commit()
        sink.close()
    assert [ended.rollout_id for ended in new.ended()] == [f"r.{n}.0" for n in range(4)]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_of_two_processes_that_take_over_one_after_the_other_the_first_cannot_put_its_copy_in_place_of_the_seconds(
    path, monkeypatch
):
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    write(path, 1)
    slow, quick = JsonlSink(path, "r"), JsonlSink(path, "r")
    slow.open()
    quick.open()
    quick.begin(True)
    with pytest.raises(SinkBusy, match="another process is taking this file over"):
        slow.begin(True)
    quick.write([rollout(1)])
    quick.close()
    slow.close()
    assert len(path.read_bytes().splitlines()) == 2


def test_what_the_disk_refused_is_not_read_from_the_page_cache_by_the_next_process(path, monkeypatch):
    sink = JsonlSink(path, "r")
    sink.open()
    sink.begin(False)
    sink.write([rollout(0)])
    sink.commit()
    sink.write(rollouts(2, 1))

    # When the disk fails once, and reports it to this process only
    def fail(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(GymqError, match="the disk failed"):
            sink.commit()
    sink.close()
    # Then the next one does not take those lines for durable: they come again and are written again
    assert write(path, 3).written == 2


def test_the_name_of_a_new_file_and_of_its_folders_is_durable(path, monkeypatch):
    synced: list[str] = []
    monkeypatch.setattr(sink_loop, "sync_folder", lambda folder: synced.append(folder.name))
    monkeypatch.setattr(jsonl, "sync_folder", lambda folder: synced.append(folder.name))
    write(path, 1)
    assert synced == [path.parent.parent.name, path.parent.name]


def test_a_file_of_another_run_is_refused_and_not_touched(path):
    write(path, 2)
    before = path.read_bytes()
    sink = JsonlSink(path, "other")
    with pytest.raises(DataError, match=r"rollout 'r\.0\.0' is of run 'r', not 'other'; choose"):
        sink.open()
    assert path.read_bytes() == before
    # And the refused sink does not keep it locked
    write(path, 3)


@pytest.mark.parametrize("content", [b'{"id": 1}\n', b"hello\n", b"\n", b'{"rollout_id":"r\n', b"\x00\xff\n"])
def test_a_file_of_something_else_is_refused_and_not_touched(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError):
        JsonlSink(path, "r").open()
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_refused_in_one_line(tmp_path):
    with pytest.raises(GymqError, match="cannot be written: Is a directory; choose another --out"):
        JsonlSink(tmp_path, "r").open()


def test_a_full_disk_is_told_in_one_line(path):
    sink = JsonlSink(path, "r")
    sink._file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(GymqError, match="No space left on device; make room"):
        sink.write([rollout(0)])
    sink.close()


def test_what_is_there_is_told_without_a_lock_and_with_any_names(path):
    odd = 'a"status":"x\\'
    sink = JsonlSink(path, "r")
    sink.open()
    sink.write([rollout(0, environment=odd, task_id=odd), rollout(1, status="failed")])
    sink.commit()
    with path.open("ab") as file:
        file.write(b'{"rollout_id":"r.2')  # torn
    other = JsonlSink(path, "r")
    assert list(other.ended()) == [Ended("r.0.0", odd, "completed"), Ended("r.1.0", "weather", "failed")]
    assert [one.failed for one in other.ended()] == [False, True]
    assert len(list(other.records())) == 2
    assert list(JsonlSink(path.with_name("none"), "r").ended()) == []


def test_what_is_dropped_gives_way_and_the_others_stay_as_they_were(path):
    write(path, 5)
    path.chmod(0o640)
    sink = JsonlSink(path, "r")
    sink.claim()
    assert sink.drop(lambda ended: ended.rollout_id in ("r.1.0", "r.4.0")) == 2
    assert sink.drop(lambda ended: False) == 0
    sink.close()
    assert path.read_bytes() == b"".join(one.json + b"\n" for one in rollouts(5) if one.id not in ("r.1.0", "r.4.0"))
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]
    assert write(path, 5).written == 2


def test_a_link_to_the_file_stays_a_link(path):
    write(path, 3)
    link = path.with_name("link.jsonl")
    link.symlink_to(path)
    sink = JsonlSink(link, "r")
    sink.claim()
    assert sink.drop(lambda ended: ended.rollout_id == "r.0.0") == 1
    sink.close()
    assert link.is_symlink()
    assert len(path.read_bytes().splitlines()) == 2


def dies_after(lines: int) -> Callable[[Ended], bool]:
    left = itertools.count(lines, -1)
    return lambda ended: os._exit(0) if next(left) == 0 else True


def test_a_death_while_lines_are_dropped_leaves_the_old_file_or_the_new_one(path):
    write(path, 200)
    whole = path.read_bytes()
    for steps in (0, 1, 100, 199):
        child = os.fork()
        if not child:
            sink = JsonlSink(path, "r")
            sink.claim()
            sink.drop(dies_after(steps))
        os.waitpid(child, 0)
        assert path.read_bytes() == whole
    assert write(path, 201).written == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]


def test_who_waits_for_the_lock_of_a_file_that_gave_way_writes_the_new_one(path, monkeypatch):
    # Given a file that is dropped from between the moments in which another sink opens it and locks it
    write(path, 2)
    sink, dropping = JsonlSink(path, "r"), JsonlSink(path, "r")
    lock = fcntl.flock

    def late(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        dropping.claim()
        dropping.drop(lambda ended: ended.rollout_id == "r.0.0")
        dropping.close()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    sink.open()
    assert len(sink.seen) == 1
    sink.write([rollout(7)])
    sink.close()
    assert [ended.rollout_id for ended in sink.ended()] == ["r.1.0", "r.7.0"]
