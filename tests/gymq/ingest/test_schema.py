"""What can be a JSON schema."""

from __future__ import annotations

import pytest

from gymq.errors import DataError
from gymq.ingest.schema import check_schema

GOOD = [
    {},
    True,
    {"type": "object", "properties": {"a": {"type": ["string", "null"], "pattern": "^x"}}, "required": ["a"]},
    {"$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 3}}, "$ref": "#/$defs/node"},
    {"anyOf": [{"const": 1}, {"enum": ["a", None]}], "title": "T", "x-ours": [1]},
    {"type": "array", "items": [{"type": "integer"}, True], "additionalProperties": False, "minLength": 2.0},
]

BAD = [
    ([], "s is no JSON schema"),
    ({"type": "text"}, "s.type is 'text'; use one of array"),
    ({"type": ["string", 3]}, "s.type is '3'"),
    ({"type": {}}, "s.type is"),
    ({"properties": ["a"]}, "s.properties holds no schemas by name"),
    ({"properties": {"a": "string"}}, "s.properties.a is no JSON schema"),
    ({"required": "a"}, "s.required is no list of names"),
    ({"required": [1]}, "s.required is no list of names"),
    ({"enum": "a"}, "s.enum is no list"),
    ({"pattern": 3}, "s.pattern is no text"),
    ({"maxItems": -1}, "s.maxItems is no whole number"),
    ({"maxItems": True}, "s.maxItems is no whole number"),
    ({"anyOf": {}}, "s.anyOf is no list of schemas"),
    ({"anyOf": [{"items": {"type": "strnig"}}]}, r"s.anyOf\[0\].items.type is 'strnig'"),
]


@pytest.mark.parametrize("schema", GOOD)
def test_schemas_are_taken(schema):
    check_schema(schema, "s")


@pytest.mark.parametrize(("schema", "words"), BAD)
def test_what_is_no_schema_is_refused_where_it_is_wrong(schema, words):
    with pytest.raises(DataError, match=words):
        check_schema(schema, "s")
