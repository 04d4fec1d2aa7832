"""Names: found among installed packages only, and refused in one line."""

from __future__ import annotations

import re
import sys

import pytest

from gymq import plugins
from gymq.errors import UnknownName, UsageError

PLUGIN = """\
from gymq.api.environment import Environment
class Fine(Environment):
    name = "fine"
class Shy(Environment):
    name = "shy"
    def __init__(self):
        raise OSError("no display")
"""
POINTS = """\
[gymq.environments]
fine = gymq_registry_plugin:Fine
broken = gymq_registry_broken:Environment
chain = gymq_registry_chain:Environment
shy = gymq_registry_plugin:Shy
missing = gymq_registry_plugin:Missing
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package of somebody else, with environments of which one cannot be imported."""
    (tmp_path / "gymq_registry_plugin.py").write_text(PLUGIN)
    (tmp_path / "gymq_registry_broken.py").write_text("1 / 0")
    (tmp_path / "gymq_registry_chain.py").write_text("import json\nimport gymq_registry_middle\n")
    (tmp_path / "gymq_registry_middle.py").write_text("def later():\n    import gymq_registry_end\nlater()\n")
    (tmp_path / "gymq_registry_end.py").write_text("def oops(:\n")
    info = tmp_path / "gymq_registry_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gymq_registry_plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    caches = (plugins.points, plugins.load, plugins.environment, plugins.agent)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()
    for module in ("plugin", "broken", "chain", "middle", "end"):
        sys.modules.pop(f"gymq_registry_{module}", None)


def test_an_installed_environment_is_made_once_and_imported_only_when_it_is_used(plugin):
    assert {"fine", "broken", "weather"} <= set(plugins.points(plugins.ENVIRONMENTS))
    assert "gymq_registry_plugin" not in sys.modules
    one = plugins.environment("fine")
    assert one.name == "fine"
    assert plugins.environment("fine") is one


@pytest.mark.parametrize("name", ["nobody", "os:system", "gymq_registry_plugin:Fine", ""])
def test_what_is_not_installed_is_not_imported_and_what_is_installed_is_told(plugin, name):
    with pytest.raises(UnknownName) as error:
        plugins.environment(name)
    assert f"unknown environment {name!r}; installed: " in str(error.value) and "fine, " in str(error.value)
    assert "gymq_registry_plugin" not in sys.modules


@pytest.mark.parametrize(("name", "says"), [("broken", "ZeroDivisionError"), ("missing", "AttributeError")])
def test_what_cannot_be_imported_says_where_and_why_in_one_line(plugin, name, says):
    with pytest.raises(UsageError) as error:
        plugins.environment(name)
    assert f"environment '{name}' (gymq_registry_" in str(error.value) and says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failing_chain_of_imports_names_the_place_in_each_of_its_files(plugin, tmp_path):
    with pytest.raises(UsageError) as error:
        plugins.environment("chain")
    places = ("gymq_registry_end.py:1", "gymq_registry_middle.py:2", "gymq_registry_middle.py:3", "gymq_registry_chain.py:2")
    assert "cannot be imported: SyntaxError: invalid syntax" in str(error.value)
    assert str(error.value).endswith(f"({', imported by '.join(f'{tmp_path}/{place}' for place in places)})")


def test_an_environment_that_cannot_be_made_says_where(plugin, tmp_path):
    with pytest.raises(UsageError) as error:
        plugins.environment("shy")
    said = f"environment 'shy' cannot be made: OSError: no display ({tmp_path}/gymq_registry_plugin.py:7)"
    assert str(error.value) == said


def test_a_failure_in_a_library_names_its_last_place_besides_the_users(tmp_path):
    (tmp_path / "asks.py").write_text("import json\njson.loads('{')\n")
    with pytest.raises(ValueError) as error:
        exec(compile((tmp_path / "asks.py").read_text(), tmp_path / "asks.py", "exec"), {"__name__": "asks"})
    assert re.search(r"json/decoder\.py:\d+, imported by .*asks\.py:2", plugins.cause(error.value, "asks"))


def test_a_worker_that_names_none_leaves_out_what_cannot_be_loaded_and_says_so(plugin, caplog):
    assert {"fine", "weather"} <= set(plugins.load_environments(None))
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" (")[0] for line in said if "registry" in line] == [
        "not served here: environment 'broken'",
        "not served here: environment 'chain'",
        "not served here: environment 'missing'",
        "not served here: environment 'shy' cannot be made: OSError: no display",
    ]


def test_a_worker_refuses_what_is_named_and_cannot_be_loaded(plugin):
    assert list(plugins.load_environments("fine,weather")) == ["fine", "weather"]
    with pytest.raises(UsageError, match="environment 'broken'"):
        plugins.load_environments("fine,broken")
    with pytest.raises(UnknownName, match="unknown agent 'nobody'"):
        plugins.load_agents("nobody")
    assert {"react", "tool"} <= set(plugins.load_agents("tool"))


def test_classes_in_files_are_added_when_one_is_asked_for(tmp_path):
    (tmp_path / "later.py").write_text(PLUGIN.replace('"fine"', '"later"'))
    plugins.add_environments_later(f"weather,{tmp_path}/later.py:Fine")
    assert plugins.environment("weather").name == "weather"
    assert "later" in plugins.environment_names()
    assert plugins.environment("later").name == "later"
    assert plugins.environment_source("later") == f"{tmp_path}/later.py:Fine"


def test_agents_are_found_by_name():
    assert plugins.agent("tool").name == "tool"
    with pytest.raises(UnknownName, match=r"unknown agent 'nobody'; installed: .*react, .*tool"):
        plugins.agent("nobody")
