"""A first look at a run's rows, before anything is started: good rows, bad rows, and the environments that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from gymq import plugins
from gymq.api.environment import EnvironmentSpec
from gymq.client.producer import Row
from gymq.errors import DataError, UsageError
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.row_parser import TaskIds, parse_row
from gymq.ingest.source import rows


class Preflight(msgspec.Struct):
    """The result of a look at the rows.

    Args:
        environments: the environment of each good row, by its number; the names are shared, so a row costs a pointer.
        bad: the number of rows that were refused.
    """

    environments: list[str] = []
    bad: int = 0

    @property
    def rows(self) -> int:
        """The number of good rows."""
        return len(self.environments)

    def specs(self) -> list[EnvironmentSpec]:
        """Return the environments of the rows.

        Raises:
            UsageError: an environment cannot be imported.
        """
        return [type(plugins.environment(name)).spec() for name in sorted(set(self.environments))]


def preflight(
    data: str, environment: str, limit: int | None, prompt: PromptConfig | None, on_bad: Callable[[str], None]
) -> Preflight:
    """Parse the rows once, and keep their environments.

    Args:
        data: the source, as for `gymq.source.open_source`.
        environment: the environment of rows that name none.
        limit: the number of rows to look at; None: all.
        prompt: templates of the opening messages of rows that have none.
        on_bad: called with one line for each bad row.

    Raises:
        DataError: the source cannot be read.
        UsageError, UnknownName: no producer is known for the source.
    """
    known = plugins.environment_names()
    names = {name: name for name in known}
    result = Preflight()
    ids = TaskIds()
    for where, row in read(data, 0, limit):
        try:
            task = parse_row(row, where=where, environment=environment, known=known, prompt=prompt)
            ids.add(task, where)
            result.environments.append(names[task.environment])
        except DataError as error:
            result.bad += 1
            on_bad(str(error))
    return result


def read(data: str, start: int, end: int | None) -> Iterator[Row]:
    """Return the rows of a part of a source.

    Args:
        data: the source.
        start: the first row wanted.
        end: the first row not wanted; None: all.

    Raises:
        DataError, UsageError, UnknownName: as `preflight`.
    """
    return islice(rows(data), start, end)


def check_kept(environments: list[str], row: int, environment: str) -> None:
    """Check that a finished rollout's row is still the same row.

    Rows are numbered without the bad ones. A row that was bad because its environment was not installed, and is good
    now, moves all rows behind it.

    Args:
        environments: the environment of each good row now.
        row: the rollout's row.
        environment: the rollout's environment.

    Raises:
        UsageError: the row is another one.
    """
    if row < len(environments) and environments[row] != environment:
        raise UsageError(
            f"row {row} was one of environment {environment!r} and is now one of {environments[row]!r}: bad rows have "
            "become good; choose another --out"
        )
