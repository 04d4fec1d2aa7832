"""A run on this machine, before anything is started: what of its file counts, and what is done again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gymq.errors import UsageError
from gymq.local.local_run import LocalRun
from gymq.local.run_options import RunOptions
from tests.support.rollouts import finished


@pytest.fixture
def made(tmp_path: Path):
    """Return a run of three rows whose file holds rollouts, each with a status."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')

    def make(*rollouts: tuple[str, str], **options: object) -> LocalRun:
        given = RunOptions.model_validate({"data": str(rows), "model": "scripted", "out": str(out), **options})
        run = LocalRun("weather", given, say=print)
        lines = (finished(name.replace("RUN", run.config.name), status=status) for name, status in rollouts)
        out.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        return run

    return make


def names(run: LocalRun) -> list[str]:
    return [name.removeprefix(run.config.name) for name in run.kept()]


FILE = (("RUN.0.0", "completed"), ("RUN.1.0", "failed"), ("RUN.2.0", "cancelled"), ("RUN.0.1", "failed"))


def test_what_failed_counts_unless_it_is_to_be_done_again(made):
    assert names(made(*FILE)) == [".0.0", ".1.0", ".2.0"]
    assert names(made(*FILE, samples=2)) == [".0.0", ".1.0", ".2.0", ".0.1"]
    assert names(made(*FILE, samples=2, retry_failed=True)) == [".0.0"]


def test_what_failed_and_is_not_done_by_this_command_stays(made):
    run = made(*FILE, limit=2, retry_failed=True)
    with run.folder.locked():
        assert run.folder.drop(run._gone) == 1
    assert names(run) == [".0.0", ".2.0"]
    assert len(list(run.folder.kept(run.config.name))) == 3


def test_what_failed_of_another_run_gives_way_but_not_its_results(made):
    other = ("other.0.0", "failed")
    with pytest.raises(UsageError, match="another run"):
        names(made(*FILE, other))
    assert names(made(*FILE, other, retry_failed=True)) == [".0.0"]
    with pytest.raises(UsageError, match="another run"):
        names(made(("other.0.0", "completed"), retry_failed=True))
