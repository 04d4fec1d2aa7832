"""Environments in files: `dice.py:Dice` names a class in a file that need not be installed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from types import ModuleType

from gymq.api.environment import Environment
from gymq.cause import cause
from gymq.errors import UsageError

#: A file and a class in it.
_TEXT = re.compile(r"(?P<path>.+\.py)(?::(?P<name>\w*))?")

#: A name that fits into a mailbox's name and into a list with commas.
_NAME = re.compile(r"[\w.-]{1,100}")

#: Files whose code is being run now: none of them may start a run.
_loading: list[str] = []


def is_file(text: str) -> bool:
    """Return whether a text names a class in a file, `FILE.py:CLASS`, and no installed environment."""
    return _TEXT.fullmatch(text) is not None


def loading() -> str:
    """Return the file whose code is being run for an environment in it; "": none."""
    return _loading[-1] if _loading else ""


def load(text: str) -> tuple[type[Environment], str]:
    """Run a file and return an environment's class from it.

    Its folder goes to the end of the path of imports: what is installed comes before the file's neighbours.

    Args:
        text: the file and the class, `dice.py:Dice`.

    Returns:
        The class, and the text with an absolute path.

    Raises:
        UsageError: the file cannot be run, or has no such environment.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} names no class in a file; write FILE.py:CLASS")
    path, wanted = os.path.abspath(match["path"]), match["name"] or ""
    module = _run(path)
    found = {name: value for name, value in vars(module).items() if _is_environment(value)}
    if wanted not in found:
        known = ", ".join(found) or "none"
        problem = f"it has no environment {wanted!r}" if wanted else "the class is missing"
        raise UsageError(f"{text}: {problem}; write {match['path']}:CLASS, with one of its environments: {known}")
    return found[wanted], f"{path}:{wanted}"


def check_name(environment: type[Environment]) -> str:
    """Return an environment's name.

    Raises:
        UsageError: it has none, or one that is no name.
    """
    name = environment.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = f"has the name {name!r}" if name else "has no name"
        raise UsageError(f"{environment.__name__} {what}; write name = {environment.__name__.lower()!r} in the class")
    return name


def _is_environment(value: object) -> bool:
    """Return whether a value is an environment's class; the base itself is none."""
    return isinstance(value, type) and issubclass(value, Environment) and value is not Environment


def _run(path: str) -> ModuleType:
    """Run a file as a module of its own."""
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such file; check the path")
    # A name that no other module has; tools read the types of their parameters from there.
    name = f"gymq_file_{hashlib.blake2b(path.encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if (folder := os.path.dirname(path)) not in sys.path:
        sys.path.append(folder)
    _loading.append(path)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{path}: cannot be loaded: {cause(error, name)}") from error
    finally:
        _loading.pop()
    return module
