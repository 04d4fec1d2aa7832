"""Environments: what agents are told of a class."""

from __future__ import annotations

import msgspec
import pytest

from gymq.api.environment import DEFAULT_TIMEOUT, Environment, EnvironmentSpec, HookSpec, hook, tool
from gymq.errors import UsageError


class Shop(Environment):
    name = "shop"

    @tool(read_only=True, timeout=5)
    def search(self, query: str, task) -> str:
        """Search."""

    @tool(once=True, isolated=True)
    async def buy(self, item: str) -> str:
        """Buy."""

    def helper(self): ...

    @hook(isolated=True, timeout=9)
    def verify(self, messages, state): ...

    async def open(self, task): ...


class Sale(Shop):
    name = "sale"

    @tool()
    def haggle(self) -> str:
        """Haggle."""

    @tool()
    def search(self, other: int) -> str:
        """Search the sale."""


def test_an_environment_is_described_by_its_tools_and_hooks():
    spec = Shop.spec()
    assert [(t.name, t.read_only, t.isolated, t.once, t.timeout) for t in spec.tools] == [
        ("search", True, False, False, 5),
        ("buy", False, True, True, DEFAULT_TIMEOUT),
    ]
    assert spec.verify == HookSpec(True, True, 9)
    assert spec.open == HookSpec(True, False, DEFAULT_TIMEOUT)
    assert spec.respond == spec.close == HookSpec(False)
    assert set(spec.tools[0].schema["function"]["parameters"]["properties"]) == {"query"}


def test_a_description_comes_back_as_it_was_written():
    spec = Shop.spec()
    assert msgspec.json.decode(msgspec.json.encode(spec), type=EnvironmentSpec) == spec


def test_tools_are_inherited_and_may_be_replaced_without_changing_the_parent():
    assert {name: t.schema["function"]["description"] for name, t in Sale.tools.items()} == {
        "search": "Search the sale.", "buy": "Buy.", "haggle": "Haggle.",
    }  # fmt: skip
    assert Shop.tools["search"].schema["function"]["description"] == "Search."
    assert set(Shop.tools) == {"search", "buy"}
    assert Sale.spec().verify == HookSpec(True, True, 9)


def test_hooks_get_what_they_ask_for():
    assert Shop.wants("verify") == {"messages", "state"}
    assert Shop.wants("open") == {"task"}
    assert Shop.wants("close") == frozenset()
    assert Shop.tools["search"].wants == {"task"}


def test_marks_work_with_and_without_parentheses():
    class Bare(Environment):
        @tool
        def roll(self, sides: int) -> str:
            """Roll."""

        @hook
        def verify(self): ...

    assert list(Bare.tools) == ["roll"]
    assert Bare.tools["roll"].flags == dict(read_only=False, isolated=False, once=False, timeout=DEFAULT_TIMEOUT)
    assert Bare.spec().verify == HookSpec(True)
    for mark in (tool, hook):
        with pytest.raises(UsageError, match="marks no method; write @"):
            mark("roll")


def test_static_methods_and_those_of_mixins_are_tools_too():
    class Mixin:
        @tool
        def pick(self, n: int) -> str: ...

    class Mixed(Environment, Mixin):
        @staticmethod
        @tool
        def roll(sides: int, state) -> str: ...

        @classmethod
        @tool
        def toss(cls, coins: int) -> str: ...

    properties = {name: list(t.schema["function"]["parameters"]["properties"]) for name, t in Mixed.tools.items()}
    assert properties == {"roll": ["sides"], "toss": ["coins"], "pick": ["n"]}
    assert Mixed.tools["roll"].wants == {"state"}


def test_an_environment_without_anything_has_neither_tools_nor_hooks():
    class Empty(Environment):
        name = "empty"

    assert Empty.spec() == EnvironmentSpec("empty")


@pytest.mark.parametrize("name", ["open", "respond", "verify", "close", "policy"])
def test_a_hook_cannot_be_a_tool_for_no_model_may_call_it(name):
    with pytest.raises(UsageError, match=f"{name} is a hook"):
        type("Bad", (Environment,), {name: tool()(lambda self: 1.0)})
