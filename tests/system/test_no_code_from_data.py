# ruff: noqa: E501
"""Nothing that a row, a message or a file says is run, unpickled or imported, and no path in it is followed."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from gymq_sinks.jsonl import JsonlSink
from kombu import serialization
from kombu.exceptions import ContentDisallowed

from gymq import plugins
from gymq.celery import app
from gymq.errors import UnknownName, UsageError
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.row_parser import parse_row
from gymq.store.runs import check_name
from gymq.wire.rollout import Rollout

ROOT = Path(__file__).parents[2]
CODE = [path for folder in ("gymq", "workers", "environments", "producers", "sinks") for path in (ROOT / folder).rglob("*.py")]

#: Calls that turn data into code, and modules that do.
RUNS = {"eval", "exec", "compile", "__import__", "import_module", "run_path", "run_module", "system", "popen", "literal_eval"}
LOADS = {
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("torch", "load"),
    ("numpy", "load"),
    ("joblib", "load"),
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "runpy", "code"}

#: What uses one of them all the same, and why no data reach it.
ALLOWED = {
    ("gymq/__init__.py", "import_module"): "the names that the package exports, from a table in it",
    ("gymq/cli/__init__.py", "import_module"): "the commands, from a table in it",
}


def found(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in RUNS:
                names.append(function.id)
            if isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else ""
                if (function.attr in RUNS and owner not in ("re", "platform")) or (owner, function.attr) in LOADS:
                    names.append(function.attr)
            names += [word.arg for word in node.keywords if word.arg in ("trust_remote_code", "allow_pickle")]
            if any(word.arg == "shell" for word in node.keywords):
                names.append("shell")
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in MODULES:
            names.append(node.module)
    return names


def test_nothing_turns_data_into_code():
    assert len(CODE) > 80
    uses = {(str(path.relative_to(ROOT)), name) for path in CODE if "/tests/" not in str(path) for name in found(path)}
    assert uses == set(ALLOWED)


def test_the_search_finds_what_it_searches_for(tmp_path: Path):
    text = "import pickle\nimport yaml, os\nyaml.load(x)\neval(x)\nos.system(x)\nload(x, trust_remote_code=True)\nrun(x, shell=True)\n"
    (tmp_path / "a.py").write_text(text)
    assert sorted(found(tmp_path / "a.py")) == ["eval", "load", "pickle", "shell", "system", "trust_remote_code"]


@pytest.mark.parametrize("content", ["application/x-python-serialize", "pickle", "application/x-yaml"])
def test_celery_takes_json_only(content: str):
    assert app.conf.accept_content == ["json"]
    accept = serialization.prepare_accept_content(app.conf.accept_content)
    with pytest.raises(ContentDisallowed):
        serialization.loads(b"cos\nsystem\n(S'true'\ntR.", content, "binary", accept=accept)


@pytest.mark.parametrize(
    "name", ["os:system", "os.system", "../x", "/etc/passwd", "", "weather:Weather", "__main__", "gymq.cli"]
)
@pytest.mark.parametrize("group", [plugins.ENVIRONMENTS, plugins.AGENTS, plugins.BACKENDS, plugins.PRODUCERS, plugins.SINKS])
def test_only_registered_names_are_imported(group: str, name: str):
    with pytest.raises(UnknownName):
        plugins.load(group, name)


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "a.b", ".", "..", "a\0b", "a\nb", "a{b}", "", "-a", "a" * 101, "tr\u0430in"]
)
def test_a_runs_name_is_no_path(name: str):
    with pytest.raises(UsageError):
        check_name(name)


PATHS = ["/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "~/.ssh/id_rsa", "\\\\host\\share"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_in_a_row_stays_text(path: str):
    # An image, a sound, a field: what names a file is sent or kept as it stands, and nobody opens it.
    parts = [
        {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": path}}, {"type": "audio_url", "audio_url": path},
        {"type": "file", "file": {"file_id": path, "path": path}},
    ]  # fmt: skip
    row = {"messages": [{"role": "user", "content": parts}], "id": path, "image": {"path": path}, "file": path}
    task = parse_row(row, where="w", environment="weather", known=["weather"])
    assert task.messages.last.content[1]["image_url"] == {"url": path}
    assert task.data == {"id": path, "image": {"path": path}, "file": path}


def test_a_prompt_template_reaches_no_attribute():
    for template in ("{x.__class__}", "{x[0]}", "{x!r:{y}}", "{0}", "{}"):
        with pytest.raises(UsageError):
            PromptConfig(user=template)


def test_a_sink_writes_only_where_it_was_told(tmp_path: Path):
    out = tmp_path / "in" / "out.jsonl"
    sink = JsonlSink(out, "r")
    sink.open()
    sink.write([Rollout("r.../../../x.0", b'{"rollout_id":"r.../../../x.0"}', True, b"../../1-0")])
    sink.commit()
    sink.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [out]


def test_a_link_as_output_is_followed_since_only_its_owner_can_have_made_it(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "disk" / "real.jsonl")
    sink = JsonlSink(tmp_path / "out.jsonl", "r")
    sink.open()
    sink.close()
    assert (tmp_path / "disk" / "real.jsonl").is_file()


def test_a_device_or_a_pipe_is_no_output(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(UsageError, match="is no plain file"):
            JsonlSink(path, "r").open()
