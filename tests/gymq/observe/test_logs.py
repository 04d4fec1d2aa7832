"""Log lines: for people and as JSON, with what they belong to, and without secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from gymq.observe import logs
from gymq.observe.events import Event, HandedBack, Lapsed, OutageBegan, WorkerReady, emit
from gymq.observe.log_lines import line_of
from gymq.observe.work import work_in_hand
from gymq.settings import Settings

log = logging.getLogger("gymq.test")


class Work:
    """A call in hand."""

    run, rollout, id = "try", "try.3.0", "try.3.0:2:0"


@pytest.fixture
def configured(capsys, monkeypatch) -> Iterator[type[None]]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    identity = dict(logs._identity)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs._identity.clear()
    logs._identity.update(identity)


@pytest.fixture
def text(configured, capsys):
    """A function that returns the lines of a text log since its last call."""
    logs.configure(Settings())
    logs.identify("model")
    return lambda: [*capsys.readouterr().err.splitlines()]


@pytest.fixture
def objects(configured, capsys):
    """A function that returns the objects of a JSON log since its last call."""
    logs.configure(Settings(log_format="json"))
    logs.identify("model")
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_its_time_level_worker_and_words(text):
    log.warning("%d things", 3)
    (line,) = text()
    time, rest = line.split(" ", 1)
    assert time.endswith("Z") and time[10] == "T"
    assert rest == "WARNING model: 3 things"


def test_a_worker_that_is_ready_says_so_and_is_named_in_all_lines_that_follow(text):
    emit(WorkerReady("model", "model-here-7-ab", ["model:scripted"], "redis://127.0.0.1:1/0"))
    log.info("on")
    said = [line.partition(" ")[2] for line in text()]
    assert said == [
        "INFO model-here-7-ab: ready: serves model:scripted at redis://127.0.0.1:1/0",
        "INFO model-here-7-ab: on",
    ]


def test_a_line_belongs_to_the_call_in_hand(text, objects):
    token = work_in_hand.set(Work())
    try:
        log.warning("slow")
    finally:
        work_in_hand.reset(token)
    log.warning("done")
    first, second = objects()
    assert (first["run"], first["rollout"], first["call"]) == ("try", "try.3.0", "try.3.0:2:0")
    assert not {"run", "rollout", "call"} & second.keys()


def test_what_an_event_tells_is_a_line_with_its_fields(objects):
    emit(Lapsed("model", "model-here-7-ab", 5.0, 3))
    (line,) = objects()
    assert (line["event"], line["level"], line["worker"], line["dropped"]) == ("Lapsed", "warning", "model-here-7-ab", 3)
    assert "declared dead" in line["message"]


def test_the_level_leaves_out_lines_of_gymq_and_other_packages_are_heard_from_warnings_on(configured, capsys):
    logs.configure(Settings(log_level="error"))
    log.warning("ours")
    emit(HandedBack("agent-x", "agent", 1))
    logging.getLogger("another.package").info("theirs")
    logging.getLogger("another.package").warning("warned")
    assert capsys.readouterr().err.rstrip().endswith("warned")
    logs.configure(Settings(log_level="debug"))
    log.debug("detail")
    assert "detail" in capsys.readouterr().err


def test_words_of_others_begin_no_line_of_their_own(text, objects):
    logs.configure(Settings())
    log.warning("said %s", "a\n2026-01-01 CRITICAL forged")
    assert len(text()) == 1


def test_an_exception_stands_below_its_line_and_in_a_field(text, configured, capsys):
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed")
        lines = text()
        assert lines[0].endswith("failed") and lines[-1] == "ValueError: no"
        logs.configure(Settings(log_format="json"))
        log.exception("failed")
    assert "ValueError: no" in json.loads(capsys.readouterr().err)["exception"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_stand_in_no_line(configured, capsys, monkeypatch, form):
    monkeypatch.setenv("SOME_API_KEY", 'plan"ted-0123456')
    logs.configure(Settings(log_format=form))
    log.warning("at %s with %s", "redis://user:pass\\word@here:1/0?x=1", 'plan"ted-0123456')
    emit(OutageBegan(0, "redis://here", "Bearer abcdefgh12 refused by rediss://:other@there, key sk-0123456789abcdef"))
    said = capsys.readouterr().err
    for secret in ("pass", "ted-0123456", "abcdefgh12", "other", "sk-0123456789abcdef"):
        assert secret not in said
    assert "redis://***@here:1/0" in said
    if form == "json":
        assert [json.loads(line)["level"] for line in said.splitlines()] == ["warning", "warning"]


def test_each_event_that_is_told_has_one_line_of_words():
    kinds = [kind for kind in Event.__subclasses__() if line_of(kind) is not None]
    assert len(kinds) >= 15
    for kind in kinds:
        _, words = line_of(kind)  # type: ignore[misc]
        assert "\n" not in words(kind(**{name: _value(name) for name in kind.__struct_fields__}))


def _value(name: str) -> object:
    numbers = {"limit", "dropped", "held", "messages", "shard", "seconds", "schema", "readable", "deaths", "rate", "waiting"}
    return ["x"] if name == "serves" else 1 if name in numbers | {"version", "handed_back"} else "x"
