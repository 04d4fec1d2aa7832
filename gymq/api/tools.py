"""Tools: methods whose JSON schema and validation come from their signature and docstring."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypedDict, get_type_hints

import pydantic

from gymq.api.definition import check_self, function_of, parameters_of, refusal
from gymq.errors import ToolError
from gymq.wire.json_types import JsonObject
from gymq.wire.message import FUNCTION_NAME

#: Parameters that the worker fills in and no model sees.
INJECTED = frozenset({"self", "task", "messages", "state", "session"})

#: Further injected parameters of hooks that may ask a model; of a tool, `answer` is the model's argument.
ASKED = frozenset({"answer", "note"})

#: Google style. A parser of all styles (docstring-parser) would keep examples and warnings from the model, and refuse a
#: docstring for one line without a colon.
_ARGS_HEADER = re.compile(r"^\s*(?:Args|Arguments|Parameters):[^\S\n]*$", re.M)
_ARG_LINE = re.compile(r"(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


class ToolFlags(TypedDict, total=False):
    """The flags of `gymq.tool`."""

    read_only: bool
    isolated: bool
    once: bool
    timeout: float


class Tool:
    """One tool of an environment.

    Args:
        name: its name for the model.
        schema: its declaration as a chat-completions tool.
        flags: `read_only`, `isolated`, `once`, `timeout`.
        wants: its injected parameters.
        model: the pydantic model of its arguments.
    """

    __slots__ = ("flags", "model", "name", "schema", "wants")

    def __init__(
        self, name: str, schema: JsonObject, flags: ToolFlags, wants: frozenset[str], model: type[pydantic.BaseModel]
    ) -> None:
        self.name = name
        self.schema = schema
        self.flags = flags
        self.wants = wants
        self.model = model

    def arguments(self, text: str) -> dict[str, object]:
        """Return the model's arguments, parsed and checked.

        Args:
            text: a JSON object, as the model wrote it; empty text counts as `{}`.

        Raises:
            ToolError: they are no JSON object or do not fit the signature; the text is for the model.
        """
        try:
            checked = self.model.model_validate_json(text or "{}")
        except pydantic.ValidationError as error:
            raise ToolError(f"Invalid arguments for {self.name}: {_problems(error)}") from None
        return {field.alias or name: getattr(checked, name) for name, field in self.model.model_fields.items()}


def wanted(function: Callable[..., object], injected: frozenset[str] = INJECTED) -> frozenset[str]:
    """Return the injected parameters that a hook or tool names.

    Args:
        function: the hook or tool.
        injected: the names to look for.
    """
    return frozenset(inspect.signature(function).parameters) & injected - {"self"}


def build_tool(cls: type, name: str, flags: ToolFlags) -> Tool:
    """Make a tool from a method.

    Args:
        cls: the method's class.
        name: its name, which becomes the tool's.
        flags: the tool's flags.

    Raises:
        UsageError: no server accepts the name, or a parameter has no type of which there is a JSON schema.
    """
    if not FUNCTION_NAME.fullmatch(name):
        raise refusal(cls, name, f"cannot be a tool: the name {name!r} needs 1 to 64 letters, digits, '_' or '-'; rename it")
    check_self(cls, name, INJECTED - {"self"})
    function = function_of(cls, name)
    summary, described = _split_docstring(function)
    # Only the other parameters' hints are resolved: those of injected ones may name what only type checkers see.
    own = {name: hint for name, hint in function.__annotations__.items() if name not in INJECTED | {"return"}}
    module = vars(sys.modules[function.__module__])
    fields: dict[str, Any] = {}
    for parameter in parameters_of(cls, name).values():
        if parameter.name in INJECTED:
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise refusal(cls, name, f"takes *{parameter.name}, which has no JSON schema; name the parameters")
        if parameter.name not in own:
            raise refusal(cls, name, f"has no type for its parameter {parameter.name!r}; write one for the model's schema")
        default = ... if parameter.default is parameter.empty else parameter.default
        # An alias, since a field of a pydantic model cannot be called everything that a parameter can: `copy`, `_x`.
        field = pydantic.Field(default, alias=parameter.name, description=described.get(parameter.name))
        hint = {parameter.name: own[parameter.name]}
        try:
            resolved = get_type_hints(SimpleNamespace(__annotations__=hint), module, include_extras=True)[parameter.name]
            fields[f"p{len(fields)}"] = (resolved, field)
            pydantic.TypeAdapter(resolved).json_schema()
        except (NameError, TypeError, pydantic.errors.PydanticUserError) as error:
            reason = str(error).splitlines()[0]
            raise refusal(
                cls, name, f"has a type for its parameter {parameter.name!r} that has no JSON schema ({reason}); use another"
            ) from None
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    model = pydantic.create_model(name, __config__=config, **fields)
    parameters = model.model_json_schema()
    parameters.pop("title", None)
    for prop in parameters.get("properties", {}).values():
        prop.pop("title", None)
    parameters.setdefault("properties", {})
    schema = {"type": "function", "function": {"name": name, "description": summary, "parameters": parameters}}
    return Tool(name, schema, flags, wanted(function), model)


def _split_docstring(function: Callable[..., object]) -> tuple[str, dict[str, str]]:
    """Split a docstring into the text before `Args:` and the arguments' descriptions."""
    description, *args = _ARGS_HEADER.split(inspect.getdoc(function) or "", maxsplit=1)
    block = itertools.takewhile(lambda line: not line or line[0].isspace(), (args[0] if args else "").splitlines())
    described: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent("\n".join(block)).splitlines():
        if match := _ARG_LINE.match(line):
            name = match[1]
            described[name] = match[2]
        elif name and line.startswith(" "):
            described[name] = f"{described[name]} {line.strip()}".strip()
    return description.strip(), described


def _problems(error: pydantic.ValidationError) -> str:
    """Return one line for the model: each problem with its place."""
    problems = []
    for item in error.errors(include_url=False, include_context=False)[:5]:
        place = ".".join(str(part) for part in item["loc"])
        problems.append(f"{place}: {item['msg']}" if place else item["msg"])
    return " ".join("; ".join(problems).split())
