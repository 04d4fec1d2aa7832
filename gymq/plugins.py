"""The registry: environments, agents, backends, producers and sinks by name, from entry points of installed packages.

A message can choose among these names, and never names a module to import. Of environments there may be further ones: classes
that a program gives to `add_environment`, or that a person names as `FILE.py:CLASS` on a command line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from gymq import environment_file
from gymq.api.agent import Agent
from gymq.api.environment import Environment
from gymq.cause import cause
from gymq.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from gymq.api.backend import Backend

T = TypeVar("T")

log = logging.getLogger(__name__)

ENVIRONMENTS = "gymq.environments"
AGENTS = "gymq.agents"
BACKENDS = "gymq.backends"
PRODUCERS = "gymq.producers"
SINKS = "gymq.sinks"
ROLES = "gymq.roles"
PLAYERS = "gymq.players"


class _Added:
    """An environment that is not installed.

    Args:
        instance: the one instance of this process.
        source: how another process finds its class, `FILE.py:CLASS`; "": only this process has it.
    """

    def __init__(self, instance: Environment, source: str) -> None:
        self.instance = instance
        self.source = source


#: Environments that are not installed, by name; they come before installed ones.
_added: dict[str, _Added] = {}

#: Classes in files that are to be added when an environment is asked for that is not among those above.
_later: list[str] = []

#: The variables with secrets that the environments need which this process has loaded.
_secrets: set[str] = set()


@cache
def points(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, not yet imported."""
    return {point.name: point for point in entry_points(group=group)}


@cache
def load(group: str, name: str) -> Any:
    """Import the object that a name stands for.

    Args:
        group: the entry points' group, such as `ENVIRONMENTS`.
        name: the entry point's name.

    Raises:
        UnknownName: no installed package has an entry point of that name.
        UsageError: the module cannot be imported.
    """
    noun = group.removeprefix("gymq.").removesuffix("s")
    point = points(group).get(name)
    if point is None:
        known = ", ".join(sorted(points(group))) or "none"
        raise UnknownName(f"unknown {noun} {name!r}; installed: {known}")
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{noun} {name!r} ({point.value}) cannot be imported: {cause(error, point.module)}") from error


@cache
def environment(name: str) -> Environment:
    """Return the one instance of an environment in this process.

    Raises:
        UnknownName, UsageError: as `load`; or it cannot be made.
    """
    while name not in _added and _later:
        add_environment(_later.pop())
    if name in _added:
        return _added[name].instance
    made: Environment = _make("environment", name, load(ENVIRONMENTS, name))
    return made


def declared_secrets() -> frozenset[str]:
    """Return the variables with secrets that the environments need which this process has loaded."""
    return frozenset(_secrets)


def environment_names() -> list[str]:
    """Return the names of all environments that this process can find."""
    return sorted({*points(ENVIRONMENTS), *_added})


def add_environment(given: type[Environment] | str) -> str:
    """Let this process find an environment; another one that was added under its name gives way.

    Args:
        given: an installed environment's name, a class in a file (`dice.py:Dice`), or a class.

    Returns:
        The environment's name.

    Raises:
        UnknownName: no installed environment has the name.
        UsageError: the file or the class is no environment.
    """
    source = ""
    if isinstance(given, str):
        if not environment_file.is_file(given):
            environment(given)
            return given
        given, source = environment_file.load(given)
    elif not (isinstance(given, type) and issubclass(given, Environment)):
        raise UsageError(f"the environment is {given!r}; give a class, the name of an installed one, or 'FILE.py:CLASS'")
    point = points(ENVIRONMENTS).get(given.name)
    if not source and point is not None and point.value == f"{given.__module__}:{given.__qualname__}":
        _added.pop(given.name, None)
    else:
        name = environment_file.check_name(given)
        _added[name] = _Added(_make("environment", name, given), source)
    environment.cache_clear()
    return given.name


def add_environments_later(names: str | None) -> None:
    """Add the environments in files once one is asked for: in the child of an executor, whose parent loads none.

    Args:
        names: as of `load_environments`.
    """
    _later.extend(name for name in (names or "").split(",") if environment_file.is_file(name))


def environment_source(name: str) -> str | None:
    """Return how another process finds an environment: its name, or `FILE.py:CLASS`; None: only this process has it."""
    added = _added.get(name)
    return name if added is None else added.source or None


@cache
def agent(name: str) -> Agent:
    """Return the one instance of an agent in this process.

    Raises:
        UnknownName, UsageError: as `load`; or it cannot be made.
    """
    made: Agent = _make("agent", name, load(AGENTS, name))
    return made


def _make(noun: str, name: str, kind: Callable[[], Any]) -> Any:
    try:
        made = kind()
        _secrets.update(made.secrets if isinstance(made, Environment) else ())
        return made
    except Exception as error:
        raise UsageError(f"{noun} {name!r} cannot be made: {cause(error, kind.__module__)}") from error


def load_environments(names: str | None) -> dict[str, Environment]:
    """Load what a worker is to serve, before it takes mail.

    Args:
        names: environments as `add_environment` takes them in text, separated by commas; empty or None: all that this process
            can find, of which those that cannot be loaded are left out, with a line in the log.

    Raises:
        UnknownName, UsageError: one that is named cannot be loaded.
    """
    if names:
        return {name: environment(name) for name in map(add_environment, filter(None, names.split(",")))}
    return _loadable(environment_names(), environment)


def load_agents(needed: str | None) -> dict[str, Agent]:
    """Load the agents that are installed; those that cannot be loaded are left out, with a line in the log.

    Args:
        needed: the name of one that must not be left out; None: none.

    Raises:
        UnknownName, UsageError: it cannot be loaded.
    """
    if needed:
        agent(needed)
    return _loadable(points(AGENTS), agent)


def _loadable(names: Iterable[str], make: Callable[[str], T]) -> dict[str, T]:
    made: dict[str, T] = {}
    for name in sorted(names):
        try:
            made[name] = make(name)
        except UsageError as error:
            log.warning("not served here: %s", error)
    return made


def backend(spec: str, options: dict[str, Any]) -> Backend:
    """Make the backend of a model, without starting it.

    Args:
        spec: the model's SPEC, `backend:model`.
        options: the backend's options.

    Raises:
        UnknownName: no backend of that name is installed.
        UsageError: its module cannot be imported, or an option makes no sense.
    """
    name, _, model = spec.partition(":")
    return load(BACKENDS, name)(model, options)
