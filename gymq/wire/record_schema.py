"""The JSON Schema of the record of a finished rollout, with a description of every field from the structs' docstrings."""

from __future__ import annotations

import re

import msgspec

from gymq.wire.json_types import JsonObject
from gymq.wire.record import SCHEMA_VERSION, RolloutRecord

#: A field in a docstring's `Args`, and its continuation lines, which are indented deeper.
_FIELD = re.compile(r"^ {8}(\w+): (.*(?:\n {9,}.*)*)", re.M)


def rollout_schema() -> JsonObject:
    """Return the JSON Schema of a finished rollout."""
    (schema,), definitions = msgspec.json.schema_components([RolloutRecord])
    for definition in definitions.values():
        _describe(definition)
    rollout = definitions[RolloutRecord.__name__]
    rollout["required"] = list(rollout["properties"])  # defaults are for records from before a field
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:gymq:rollout:{SCHEMA_VERSION}",
        "title": f"A finished rollout of gymq, version {SCHEMA_VERSION}",
        **schema,
        "$defs": definitions,
    }


def _describe(definition: JsonObject) -> None:
    """Move what a definition's docstring says of its fields to these."""
    summary, _, fields = definition["description"].partition("\n\n    Args:\n")
    definition["description"] = summary
    for name, text in _FIELD.findall(fields):
        definition.get("properties", {}).get(name, {})["description"] = " ".join(text.split())
