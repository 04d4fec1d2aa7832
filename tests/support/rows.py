"""Rows for tests of the parser: what a row becomes, and why one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gymq.errors import DataError
from gymq.ingest.row_parser import parse_row
from gymq.wire.task import Task


def parse(row: Any, **more: Any) -> Task:
    data = row if isinstance(row, bytes) else json.dumps(row).encode()
    return parse_row(data, **{"where": "rows.jsonl:17", "environment": "weather", "known": {"weather", "counter"}, **more})


def nemo(**params: Any) -> Task:
    return parse({"responses_create_params": {"input": "Hi", **params}})


def turns(task: Task) -> list[Any]:
    return [json.loads(turn) for turn in task.encoded]


def sampling(task: Task) -> Any:
    return json.loads(task.sampling)


def items(*given: Any) -> list[Any]:
    return turns(nemo(input=list(given)))


def reason(row: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        parse(row, **more)
    line = str(caught.value)
    assert line.startswith("rows.jsonl:17: ")
    assert "\n" not in line
    assert line.isprintable()
    return line.removeprefix("rows.jsonl:17: ")


USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'}
CALLED = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
