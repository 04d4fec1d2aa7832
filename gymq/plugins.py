"""The registry: environments, agents, backends, producers and sinks by name, from entry points of installed packages.

Entry points are the only way in: a message can choose among installed names, and never names a module to import.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from gymq.api.agent import Agent
from gymq.api.environment import Environment
from gymq.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from gymq.api.backend import Backend

ENVIRONMENTS = "gymq.environments"
AGENTS = "gymq.agents"
BACKENDS = "gymq.backends"
PRODUCERS = "gymq.producers"
SINKS = "gymq.sinks"
ROLES = "gymq.roles"


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
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{noun} {name!r} ({point.value}) cannot be imported: {reason}") from error


@cache
def environment(name: str) -> Environment:
    """Return the one instance of an environment in this process.

    Raises:
        UnknownName, UsageError: as `load`.
    """
    return load(ENVIRONMENTS, name)()


@cache
def agent(name: str) -> Agent:
    """Return the one instance of an agent in this process.

    Raises:
        UnknownName, UsageError: as `load`.
    """
    return load(AGENTS, name)()


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
