"""The public names: one table, from which lazy loading, `__all__` and type checkers agree."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import gymq


def test_type_checkers_see_the_names_of_the_table():
    tree = ast.parse(Path(gymq.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"gymq.{module}" for name, module in gymq.PUBLIC.items()}
    assert all(alias.name == alias.asname for node in block.body for alias in node.names)


def test_all_lists_the_names_of_the_table_in_order():
    assert gymq.__all__ == list(gymq.PUBLIC) == sorted(gymq.PUBLIC)


@pytest.mark.parametrize("name", gymq.PUBLIC)
def test_a_name_is_defined_in_its_module_and_has_a_docstring(name):
    value = getattr(gymq, name)
    assert value.__module__ == f"gymq.{gymq.PUBLIC[name]}"
    assert value is getattr(import_module(value.__module__), name)
    assert inspect.getdoc(value) and value.__doc__


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'Actor'"):
        gymq.Actor  # noqa: B018


def test_importing_gymq_loads_none_of_its_modules():
    code = "import sys, gymq; print([name for name in sys.modules if name.startswith('gymq.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
