"""Prompt templates: the wording of a prompt from a row's fields, kept apart from the data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Formatter

import msgspec

from gymq.errors import DataError, UsageError
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Message
from gymq.yaml_file import load_yaml


class PromptConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Templates of a row's opening messages, in the syntax of `str.format`: `{field}` stands for the row's field.

    Args:
        user: the user message's template.
        system: the system message's template; None: no such message.

    Raises:
        UsageError: a template is malformed, or reaches into a field (`{field.attribute}`, `{field[0]}`).
    """

    user: str
    system: str | None = None

    def __post_init__(self) -> None:
        for template in (self.user, self.system or ""):
            _names(template)

    @classmethod
    def load(cls, path: str | Path) -> PromptConfig:
        """Return the templates of a YAML file.

        Raises:
            UsageError: the file cannot be read, is not YAML, or holds something else.
        """
        return load_yaml(path, cls, "a prompt file has user: (text) and perhaps system: (text)")

    def messages(self, row: JsonObject) -> list[Message]:
        """Return the opening messages of a row.

        Args:
            row: the row's fields.

        Raises:
            DataError: a field is missing or null, or does not fit its format.
        """
        system = [] if self.system is None else [Message("system", _fill(self.system, row))]
        return [*system, Message("user", _fill(self.user, row))]


@cache
def _names(template: str) -> tuple[str, ...]:
    """Return the names of a template's fields, checked."""
    try:
        parsed = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UsageError(f"the template is malformed ({error}); write {{{{ and }}}} for braces") from None
    for name, spec, how in parsed:
        # Attributes would let a template reach into Python objects, and a nested field would let data choose the format.
        if not name or name.isdigit() or "." in name or "[" in name or "{" in (spec or "") or how not in (None, "r", "s", "a"):
            raise UsageError(f"the template has {{{name}}}; only plain names of fields can stand in braces")
    return tuple(name for name, _, _ in parsed)


def _fill(template: str, row: JsonObject) -> str:
    for name in _names(template):
        if row.get(name) is None:
            raise DataError(f"has no field {name!r}, which the prompt needs; add it, or change the prompt file")
    try:
        return template.format_map(row)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"a field does not fit the prompt's format ({error}); change the row or the prompt file") from None
