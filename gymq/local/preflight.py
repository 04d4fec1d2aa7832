"""A first look at a run's rows, before anything is started: how many are good, which are bad, what they need."""

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
    """What a look at the rows found.

    Args:
        environments: of each good row, by its number; the names are shared, so this is a pointer a row.
        bad: how many rows were refused.
    """

    environments: list[str] = []
    bad: int = 0

    @property
    def rows(self) -> int:
        """How many rows are good."""
        return len(self.environments)

    def specs(self) -> list[EnvironmentSpec]:
        """The environments of the rows.

        Raises:
            UsageError: one cannot be imported.
        """
        return [type(plugins.environment(name)).spec() for name in sorted(set(self.environments))]


def preflight(
    data: str, environment: str, limit: int | None, prompt: PromptConfig | None, on_bad: Callable[[str], None]
) -> Preflight:
    """Look at the rows once.

    Args:
        data: the source, as for `gymq.source.open_source`.
        environment: of rows that name none.
        limit: look only at so many.
        prompt: words the opening messages of rows that have none.
        on_bad: told of each bad row, in one line.

    Raises:
        DataError: the source cannot be read.
        UsageError, UnknownName: nobody is known to read it.
    """
    known = plugins.points(plugins.ENVIRONMENTS)
    names = {name: name for name in known}
    found = Preflight()
    ids = TaskIds()
    for where, row in read(data, 0, limit):
        try:
            task = parse_row(row, where=where, environment=environment, known=known, prompt=prompt)
            ids.add(task, where)
            found.environments.append(names[task.environment])
        except DataError as error:
            found.bad += 1
            on_bad(str(error))
    return found


def read(data: str, start: int, end: int | None) -> Iterator[Row]:
    """Read a part of a source.

    Args:
        data: the source.
        start: the first row wanted.
        end: the first row not wanted; None: all.

    Raises:
        DataError, UsageError, UnknownName: as `preflight`.
    """
    return islice(rows(data), start, end)


def check_kept(environments: list[str], row: int, environment: str) -> None:
    """See that a finished rollout's row is still the same row.

    Rows are numbered without the bad ones. A row that was bad because its environment was not installed, and is good
    now, moves all rows behind it.

    Raises:
        UsageError: it is another row.
    """
    if row < len(environments) and environments[row] != environment:
        raise UsageError(
            f"row {row} was one of environment {environment!r} and is now one of {environments[row]!r}: bad rows have "
            "become good; choose another --out"
        )
