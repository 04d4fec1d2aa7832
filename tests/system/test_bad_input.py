"""Bad input gets one clear line that says what, where and what to do: never a traceback, a hang or a silent default."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gymq_environments.weather.environment import Weather

from gymq import plugins
from gymq.celery import broker
from gymq.cli import main
from gymq.errors import DataError, GymqError, ToolError, UsageError
from gymq.ingest.row_parser import TaskIds, parse_row
from gymq.ingest.source import fingerprint, rows
from gymq.settings import Settings
from tests.support.bad_rows import ROWS
from tests.support.bad_sources import ARGUMENTS, BROKERS, FILES, OPTIONS

GYMQ = str(Path(sys.executable).parent / "gymq")
CONFIGS = {
    "brackets.yaml": "[" * 5000,
    "object.yaml": "!!python/object/apply:os.system [id]",
    "nan.yaml": "sampling: {x: .nan}",
    "hot.yaml": "sampling: {temperature: hot}",
    "reach.yaml": "user: '{x.__class__}'",
}


def named(cases: list[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


def fits(line: str, expected: str, **names: str) -> None:
    """See that a line is exactly the expected one; `{any}` in it stands for a library's own words."""
    assert "\n" not in line
    parts = expected.format(any="\0", crc="\0", **names).split("\0")
    assert re.fullmatch(".+".join(map(re.escape, parts)), line), f"{line!r} is not {expected!r}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a good file and some bad ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ok.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "empty.jsonl").touch()
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_there_are_many_cases_and_all_differ():
    cases = [*ROWS, *FILES, *OPTIONS, *BROKERS, *ARGUMENTS]
    assert len(cases) > 250
    assert len({case[0] for case in ROWS}) == len({case[1] for case in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("row", "line"), named(ROWS))
def test_a_bad_row_is_one_line(row: bytes, line: str):
    with pytest.raises(DataError) as caught:
        parse_row(row, where="rows.jsonl:17", environment="weather", known=["counter", "weather"])
    assert str(caught.value) == f"rows.jsonl:17: {line}"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("name", "content", "line"), named(FILES))
def test_a_bad_file_is_one_line(place: Path, name: str, content: Any, line: str):
    pytest.importorskip("datasets")
    path = place / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content(path)
    if "Permission denied" in line and os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    fits(first_problem(name), line, s=name, s200=name[:200])


def first_problem(source: str) -> str:
    """What is said first of a source, as `gymq produce` reads it."""
    ids = TaskIds()
    try:
        fingerprint(source)
        for where, row in rows(source):
            ids.add(parse_row(row, where=where, environment="weather", known=["weather"]), where)
    except GymqError as error:
        return str(error)
    raise AssertionError("nothing was said")


@pytest.mark.parametrize(("args", "variables", "code", "line"), named(OPTIONS))
def test_a_bad_option_is_one_line_and_its_exit_code(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    variables: dict[str, str],
    code: int,
    line: str,
):
    pytest.importorskip("reasoning_gym")
    for name, value in {"REDIS_URL": "redis://127.0.0.1:1/0", **variables}.items():
        monkeypatch.setenv(f"GYMQ_{name}", value)
    monkeypatch.setattr(sys, "argv", ["gymq", *args])
    before = sorted(place.iterdir())
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    known = ", ".join(sorted(plugins.points(plugins.ENVIRONMENTS)))
    said = capsys.readouterr().err
    assert said.startswith("gymq: ")
    fits(said.removeprefix("gymq: ").rstrip("\n"), line, known=known)
    assert ended.value.code == code
    assert sorted(place.iterdir()) == before, "a refused command leaves nothing behind"


@pytest.mark.parametrize(("url", "line"), named(BROKERS))
def test_a_bad_broker_is_one_line(redis_url: str, monkeypatch: pytest.MonkeyPatch, url: str, line: str):
    monkeypatch.setenv("GYMQ_BROKER_URL", url)
    with pytest.raises(UsageError) as caught:
        broker.find(Settings.from_environment(redis_url=redis_url))
    assert str(caught.value) == line


@pytest.mark.parametrize(("text", "said"), named(ARGUMENTS))
def test_arguments_that_do_not_fit_are_told_to_the_model(text: str, said: str):
    with pytest.raises(ToolError) as caught:
        Weather.tools["get_weather"].arguments(text)
    fits(str(caught.value), f"Invalid arguments for get_weather: {said}")
    assert len(str(caught.value)) < 1000


def test_a_file_that_changes_while_it_is_read_is_told(place: Path):
    file = place / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n' * 3)
    reading = rows("rows.jsonl")
    next(reading)
    with file.open("a") as more:
        more.write('{"prompt": "b"}\n')
    with pytest.raises(DataError, match=r"^rows\.jsonl: was changed while it was read; leave it as it is, and begin again"):
        list(reading)
    # And between the look that names the run and the reading
    fingerprint("rows.jsonl")
    file.write_text('{"prompt": "c"}\n')
    with pytest.raises(DataError, match="was changed while it was read"):
        list(rows("rows.jsonl"))


# --- the same as processes ---


def gymq(place: Path, *args: str, redis: str) -> tuple[int, str]:
    environment = {**os.environ, "GYMQ_REDIS_URL": redis, "GYMQ_LIVENESS": "1", "COLUMNS": "200"}
    done = subprocess.run([GYMQ, *args], check=False, cwd=place, env=environment, capture_output=True, text=True, timeout=90)
    return done.returncode, done.stderr


BAD = b'{"prompt": "What is the weather in Rome?", "id": 1}\n{"prompt": NaN}\n{"prompt": "b", "id": "1"}\n[1]\n{"prompt": 3}\n'
SAID = (
    "bad.jsonl:2: holds NaN, which is not JSON; write null\n"
    "bad.jsonl:3: id '1' is that of an earlier row too; give each row its own, or none\n"
    "bad.jsonl:4: is not a JSON object; write {...}, one row per line\n"
    "bad.jsonl:5: prompt: Expected str | array, got int; correct it\n"
)


def test_gymq_produce_tells_each_bad_row_and_enqueues_the_others(place: Path, redis_url: str):
    (place / "bad.jsonl").write_bytes(BAD)
    for _ in range(2):
        args = ("produce", "weather", "--model", "scripted", "--data", "bad.jsonl", "--run", "r")
        assert gymq(place, *args, redis=redis_url) == (3, SAID)


def test_gymq_run_tells_each_bad_row_and_rolls_the_others_out(place: Path, redis_url: str):
    (place / "bad.jsonl").write_bytes(BAD)
    args = ("run", "weather", "--model", "scripted", "--data", "bad.jsonl", "--out", "out.jsonl", "--redis", redis_url)
    code, said = gymq(place, *args, redis=redis_url)
    assert (code, said.startswith(SAID)) == (3, True), said
    assert said.splitlines()[-1] == "gymq: 4 rows were bad; they are listed above"
    assert len((place / "out.jsonl").read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("produce", "weather", "--model", "scripted", "--run", "r", "--data", "jsonl:/dev/zero"), 3,
         "/dev/zero: is no plain file, and rows are read more than once; write them to a file first"),
        (("produce", "os:system", "--model", "scripted", "--run", "r", "--data", "ok.jsonl"), 2,
         "unknown environment 'os:system'; installed: counter, guess_number, multiple_choice, reasoning_gym, weather"),
        (("worker", "agent", "--redis", "{redis},redis://127.0.0.1:1/0?x=1"), 2,
         "--redis: unexpected keyword argument 'x'; correct what stands behind '?' in the URL"),
        (("worker", "resource", "--environments", "../../x"), 2,
         "unknown environment '../../x'; installed: counter, guess_number, multiple_choice, reasoning_gym, weather"),
        (("run", "weather", "--model", "scripted", "--data", "ok.jsonl", "--out", "/dev/full"), 2,
         "/dev/full: is no plain file, and finished rollouts are read from it; choose another --out"),
    ],
    ids=["device", "environment", "shard", "worker", "output"],
)  # fmt: skip
def test_a_mistake_ends_a_process_with_its_line(place: Path, redis_url: str, args: tuple[str, ...], code: int, said: str):
    args = tuple(arg.replace("{redis}", redis_url) for arg in args)
    assert gymq(place, *args, redis=redis_url) == (code, f"gymq: {said}\n")
