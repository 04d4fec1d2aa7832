"""Tools: what the model is told of a method, and what becomes of the arguments that it writes."""

from __future__ import annotations

import enum
import warnings
from typing import Annotated, Any, Literal

import pydantic
import pytest

from gymq.api.tools import build_tool, wanted
from gymq.errors import ToolError, UsageError


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(pydantic.BaseModel):
    x: int
    y: int = 0


class Line(pydantic.BaseModel):
    points: list[Point]


def tool(function, **flags):
    return build_tool(type("Box", (), {function.__name__: function}), function.__name__, flags)


def properties(function) -> dict[str, Any]:
    return tool(function).schema["function"]["parameters"]["properties"]


def test_a_tool_is_declared_from_its_signature_and_docstring():
    def search(self, query: str, limit: int = 5) -> str:
        """Search the shop.

        In all its departments.

        Args:
            query: words to look for,
                in any order.
            limit (int): how many to return.

        Returns:
            limit: not an argument.
        """

    assert tool(search).schema == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the shop.\n\nIn all its departments.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "words to look for, in any order."},
                    "limit": {"type": "integer", "description": "how many to return.", "default": 5},
                },
                "required": ["query"],
                "additionalProperties": False,
            },
        },
    }


def test_a_tool_without_docstring_or_arguments_is_declared_all_the_same():
    def now(self): ...

    function = tool(now).schema["function"]
    assert function["description"] == ""
    assert function["parameters"]["properties"] == {}
    assert tool(now).arguments("") == tool(now).arguments("{}") == {}


def test_types_become_their_json_schema():
    def every(
        self,
        choice: Literal["a", "b"],
        maybe: str | None = None,
        color: Color = Color.RED,
        numbers: list[int] = [],  # noqa: B006
        bounded: Annotated[int, pydantic.Field(ge=1, le=9)] = 3,
        free: dict[str, Any] | None = None,
    ): ...

    found = properties(every)
    assert found["choice"]["enum"] == ["a", "b"]
    assert {each["type"] for each in found["maybe"]["anyOf"]} == {"string", "null"}
    assert found["numbers"] == {"type": "array", "items": {"type": "integer"}, "default": []}
    assert (found["bounded"]["minimum"], found["bounded"]["maximum"], found["bounded"]["default"]) == (1, 9, 3)
    assert found["color"]["default"] == "red"
    assert tool(every).schema["function"]["parameters"]["$defs"]["Color"]["enum"] == ["red", "blue"]


def test_nested_models_and_enums_arrive_as_themselves():
    def draw(self, line: Line, color: Color): ...

    parameters = tool(draw).schema["function"]["parameters"]
    assert parameters["$defs"]["Line"]["properties"]["points"]["items"] == {"$ref": "#/$defs/Point"}
    given = tool(draw).arguments('{"line": {"points": [{"x": 1}]}, "color": "blue"}')
    assert given == {"line": Line(points=[Point(x=1, y=0)]), "color": Color.BLUE}


def test_defaults_are_given_and_are_not_shared_between_calls():
    def add(self, items: list[int] = [], name: str = "n"): ...  # noqa: B006

    one = tool(add)
    one.arguments("{}")["items"].append(1)
    assert one.arguments("{}") == {"items": [], "name": "n"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"n": "many"}', "n: Input should be a valid integer"),
        ("{}", "n: Field required"),
        ('{"n": 1, "m": 2}', "m: Extra inputs are not permitted"),
        ("{oops", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ("null", "Input should be an object"),
        ('{"n": 1e99}', "n: "),
        ("[" * 100_000, "Invalid JSON"),
        ('{"n": 1, "a\\nb": 2}', "Extra inputs"),
        ('{"n": "\\ud800"}', "Invalid"),
    ],
)
def test_what_does_not_fit_is_told_to_the_model_in_one_line(text, says):
    def count(self, n: int): ...

    with pytest.raises(ToolError) as error:
        tool(count).arguments(text)
    said = str(error.value)
    assert said.startswith("Invalid arguments for count: ") and says in said
    assert "\n" not in said
    assert "pydantic" not in said


def test_many_mistakes_are_told_in_few_words():
    def count(self, n: list[int]): ...

    with pytest.raises(ToolError) as error:
        tool(count).arguments('{"n": [' + ",".join(['"x"'] * 1000) + "]}")
    assert "n.0: " in str(error.value)
    assert len(str(error.value)) < 1000


def test_what_the_worker_fills_in_is_never_shown_to_the_model_nor_taken_from_it():
    def act(self, n: int, task, messages, state: NotDefinedAnywhere): ...  # noqa: F821

    one = tool(act)
    assert set(one.schema["function"]["parameters"]["properties"]) == {"n"}
    assert one.wants == {"task", "messages", "state"}
    with pytest.raises(ToolError, match="state: Extra inputs"):
        one.arguments('{"n": 1, "state": {}}')


def test_only_what_is_asked_for_is_injected():
    def verify(self, messages, *, state): ...

    assert wanted(verify) == {"messages", "state"}


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a" * 65, "ü", "a\n"])
def test_names_that_servers_refuse_are_refused(name):
    with pytest.raises(UsageError, match="cannot be a tool: the name"):
        build_tool(type("Box", (), {name: lambda self: None}), name, {})


def test_a_parameter_without_a_type_is_refused_by_name():
    def act(self, n): ...

    with pytest.raises(UsageError, match=r"test_tools.py:\d+: Box.act has no type for its parameter 'n'; write one"):
        tool(act)


def test_open_ended_parameters_are_refused():
    def some(self, *numbers: int): ...

    def more(self, **options: int): ...

    for function in (some, more):
        with pytest.raises(UsageError, match="has no JSON schema"):
            tool(function)


def test_a_type_that_no_model_can_write_is_refused_by_name():
    class Engine: ...

    def unknown(self, n: Nowhere): ...  # noqa: F821

    def opaque(self, engine): ...

    opaque.__annotations__["engine"] = Engine

    for function, parameter in ((unknown, "n"), (opaque, "engine")):
        with pytest.raises(UsageError, match=f"has a type for its parameter '{parameter}' that has no JSON schema"):
            tool(function)


def test_a_tool_without_self_is_refused():
    def act(n: int): ...

    with pytest.raises(UsageError, match=r"Box.act has no parameter self; write it first"):
        tool(act)


@pytest.mark.parametrize("name", ["schema", "json", "copy", "validate", "dict", "model_config", "_hidden"])
def test_a_parameter_may_be_called_like_something_of_pydantic(name):
    scope: dict[str, Any] = {}
    exec(f"def act(self, {name}: int = 3): ...", {"__name__": __name__}, scope)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = tool(scope["act"])
    assert one.arguments("{}") == {name: 3}
    assert one.arguments(f'{{"{name}": 4}}') == {name: 4}


def test_flags_are_kept():
    def act(self): ...

    assert tool(act, read_only=True, timeout=3.0).flags == {"read_only": True, "timeout": 3.0}
