"""`gymq cancel --group`: tasks' ids, rows' numbers and groups' ids, and what could be two of them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gymq.cli.cancel import find_groups
from gymq.errors import UnknownName, UsageError
from gymq.store.sharded import Shards
from gymq.wire.ids import PartId


class OneShard:
    """A shard that holds the task `q-3` in row 7, `1` in row 0 and `5` in row 5."""

    async def each(self, work: object) -> list[dict[str, int]]:
        return [{"q-3": 7, "1": 0, "5": 5}]


def found(*names: str) -> list[PartId]:
    shards: Any = OneShard()
    return asyncio.run(find_groups(cast("Shards", shards), "r", names))


def test_a_group_is_named_by_its_task_its_row_or_its_id():
    assert found("q-3", "9", "r.4", "5") == [PartId(7), PartId(9), PartId(4), PartId(5)]
    assert found() == []


def test_a_number_that_is_one_tasks_id_and_anothers_row_is_refused():
    with pytest.raises(UsageError, match=r"--group 1: is a row's number, and the id of the task in row 0; write r\.1 or r\.0"):
        found("1")
    assert found("r.1", "r.0") == [PartId(1), PartId(0)]


@pytest.mark.parametrize("name", ["q-4", "7.0", "r.7.0", "r.x", ""])
def test_what_names_no_group_is_refused(name):
    with pytest.raises(UnknownName, match="has no task of that id that is not finished, and it is no row's number"):
        found(name)
