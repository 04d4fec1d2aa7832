"""Check of JSON schemas in rows.

Each server takes another part of the language, so only the form of its words is checked: in any draft, with the place of
an error. The package jsonschema takes fifty times as long, 2.4 ms a schema, and needs to be told the draft.
"""

from __future__ import annotations

from gymq.errors import DataError

#: The types that a schema may name.
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})

#: Words whose value is one schema, a list of schemas, schemas by name, or a whole number from 0 up.
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "unevaluatedProperties")
_LIST = ("anyOf", "allOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SIZES = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def check_schema(schema: object, at: str) -> None:
    """Check that the words of a JSON schema have values of their kind; unknown words may have any.

    Args:
        schema: decoded JSON.
        at: its place, for errors.

    Raises:
        DataError: a word has a value of another kind.
    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise DataError(f"{at} is no JSON schema; it is an object, or true or false")
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else [None]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise DataError(f"{at}.type is {str(kind)[:60]!r}; use one of {', '.join(sorted(_TYPES))}")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise DataError(f"{at}.required is no list of names; write the properties' names")
    if not isinstance(schema.get("enum", []), list):
        raise DataError(f"{at}.enum is no list; write the values as one")
    for word in ("pattern", "$ref"):
        if not isinstance(schema.get(word, ""), str):
            raise DataError(f"{at}.{word} is no text; make it a string")
    for word in _SIZES:
        size = schema.get(word, 0)
        if isinstance(size, bool) or not isinstance(size, int | float) or size < 0 or size != int(size):
            raise DataError(f"{at}.{word} is no whole number from 0 up; correct it")
    for word in _ONE:
        inner = schema.get(word, True)
        # In drafts before 2020 `items` may be a list.
        for part in inner if word == "items" and isinstance(inner, list) else [inner]:
            check_schema(part, f"{at}.{word}")
    for word in _LIST:
        inner = schema.get(word, [])
        if not isinstance(inner, list):
            raise DataError(f"{at}.{word} is no list of schemas; write [{{...}}]")
        for index, part in enumerate(inner):
            check_schema(part, f"{at}.{word}[{index}]")
    for word in _NAMED:
        inner = schema.get(word, {})
        if not isinstance(inner, dict):
            raise DataError(f"{at}.{word} holds no schemas by name; write {{name: {{...}}}}")
        for name, part in inner.items():
            check_schema(part, f"{at}.{word}.{name[:60]}")
