"""The runs that an agent worker serves, with their environments, agents and policy versions, read once and then kept."""

from __future__ import annotations

from collections.abc import Iterable

from gymq.api.agent import Action, Agent, View
from gymq.api.environment import EnvironmentSpec
from gymq.errors import UsageError
from gymq.store.connection import Connection, Outage
from gymq.store.model_weights import read_version
from gymq.store.runs import RunConfig, load_incarnation


class RunCache:
    """Runs as they were read from Redis.

    Args:
        connection: reconnected after an outage.
        agents: the agents by name, loaded before any mail was taken: a message must not choose what is imported.
    """

    def __init__(self, connection: Connection, agents: dict[str, Agent]) -> None:
        self._connection = connection
        self._agents = agents
        self._runs: dict[tuple[str, str, str], tuple[RunConfig, EnvironmentSpec]] = {}
        self._versions: dict[str, int] = {}

    def forget(self) -> None:
        """Have runs read again: the memory of those that have ended is free."""
        self._runs.clear()

    def forget_versions(self) -> None:
        """Have policy versions read again."""
        self._versions.clear()

    async def load(self, run: str, incarnation: str, environment: str) -> tuple[RunConfig, EnvironmentSpec, Agent]:
        """Return a run, one of its environments, and its agent.

        Args:
            run: the run's name.
            incarnation: the run's incarnation.
            environment: the environment's name.

        Raises:
            UnknownName: the run was removed, or Redis was rolled back to before it.
        """
        key = (run, incarnation, environment)
        while key not in self._runs:
            try:
                self._runs[key] = await load_incarnation(self._connection, *key)
            except Outage:
                await self._connection.reconnect()
        config, spec = self._runs[key]
        return config, spec, self._agents.get(config.agent) or _MissingAgent(config.agent, self._agents)

    async def version(self, config: RunConfig) -> int:
        """Return the policy version of a run's model; 0 where the run does not bound staleness."""
        if config.max_staleness is None:
            return 0
        while config.model not in self._versions:
            try:
                self._versions[config.model] = await read_version(self._connection, config.model)
            except Outage:
                await self._connection.reconnect()
        return self._versions[config.model]


class _MissingAgent(Agent):
    """Stands in for an agent that is not installed here: its rollouts fail and say so."""

    def __init__(self, agent: str, others: Iterable[str]) -> None:
        self._reason = f"unknown agent {agent!r}; this worker has {', '.join(others) or 'none'}"

    def act(self, view: View) -> Action:
        """Fail."""
        raise UsageError(self._reason)
