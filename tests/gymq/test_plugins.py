"""Names: found among installed packages only, and refused in one line."""

from __future__ import annotations

import sys

import pytest

from gymq import plugins
from gymq.errors import UnknownName, UsageError

PLUGIN = """\
from gymq.api.environment import Environment
class Fine(Environment):
    name = "fine"
"""
POINTS = """\
[gymq.environments]
fine = gymq_registry_plugin:Fine
broken = gymq_registry_broken:Environment
missing = gymq_registry_plugin:Missing
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package of somebody else, with environments of which one cannot be imported."""
    (tmp_path / "gymq_registry_plugin.py").write_text(PLUGIN)
    (tmp_path / "gymq_registry_broken.py").write_text("1 / 0")
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
    for module in ("gymq_registry_plugin", "gymq_registry_broken"):
        sys.modules.pop(module, None)


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


def test_agents_are_found_by_name():
    assert plugins.agent("tool").name == "tool"
    with pytest.raises(UnknownName, match=r"unknown agent 'nobody'; installed: .*react, .*tool"):
        plugins.agent("nobody")
