"""Definitions: mistakes in a user's class are refused where it stands, with place and remedy; other code is left alone."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from gymq.api.agent import Agent, Generate
from gymq.api.backend import Backend
from gymq.api.environment import HOOKS, Environment, hook, tool
from gymq.errors import UsageError


def environment(**members: Any) -> type[Environment]:
    return type("Dice", (Environment,), members)


def refused(**members: Any) -> str:
    with pytest.raises(UsageError) as error:
        environment(**members)
    said = str(error.value)
    assert "\n" not in said
    return said


def test_the_place_and_the_remedy_are_named():
    def vrify(self, messages): ...

    line = vrify.__code__.co_firstlineno
    assert refused(vrify=vrify) == (
        f"{__file__}:{line}: Dice.vrify looks like the hook verify, which Dice does not define; "
        "rename it to verify, or to _vrify if it is a helper"
    )


MISSPELT = {
    "verify": ["vrify", "verfy", "verifiy", "veriffy", "veirfy", "Verify", "VERIFY", "verify_", "verif"],
    "open": ["opne", "oepn", "Open", "oppen", "opn"],
    "close": ["clsoe", "cloes", "cose", "cloose", "clos"],
    "respond": ["repond", "respnod", "respon", "resspond", "responed", "rewpond"],
    "session": ["sesion", "sessoin", "sesssion"],
    "policy": ["plicy", "polcy", "poilcy", "polliccy"],
}

#: Methods that environments have of their own, though they look a bit like hooks.
HELPERS = [
    *("opened", "opens", "opener", "reopen", "opening", "open_door", "is_open", "omen", "oven", "pen", "nope", "peon"),
    *("closed", "closes", "closer", "closest", "clone", "lose", "chose", "clothe", "disclose", "closing", "clause"),
    *("verified", "verifier", "verification", "verify_move", "verily", "very", "clarify", "notify"),
    *("response", "responds", "responder", "responded", "correspond", "reset", "report", "rescind", "respawn", "despond"),
    *("sessions", "new_session", "mission", "passion", "season", "possession", "position"),
    *("police", "policies", "polite", "polish", "poly", "polity", "apply"),
    *("step", "reset", "score", "reward", "act", "render", "state", "task", "messages", "run", "seed", "move", "play"),
]


@pytest.mark.parametrize(("wanted", "name"), [(wanted, name) for wanted, names in MISSPELT.items() for name in names])
def test_a_misspelt_hook_is_refused(wanted, name):
    assert f"looks like the hook {wanted}" in refused(**{name: lambda self, task: None})


@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_that_looks_a_bit_alike_is_none(name):
    environment(**{name: lambda self, task: None})


def test_a_method_is_no_misspelt_hook_if_that_is_defined_or_it_takes_nothing_of_what_a_hook_does():
    environment(vrify=lambda self, messages: None, verify=lambda self: 1.0)
    environment(resound=lambda self, sound: None)  # as like as a misspelling, but an English word
    environment(vrify=tool(lambda self: ""))
    environment(_vrify=lambda self, messages: None)
    Base = environment(verify=lambda self: 1.0)
    type("Derived", (Base,), {"vrify": lambda self, messages: None})


def test_a_misspelt_hook_of_a_mixin_is_refused():
    class Mixin:
        def vrify(self, messages): ...

    with pytest.raises(UsageError, match="looks like the hook verify"):
        type("Dice", (Environment, Mixin), {})


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_may_name_what_is_filled_in_and_nothing_else(name):
    known = ", ".join(sorted(HOOKS[name]))
    scope: dict[str, Any] = {}
    exec(f"def everything(self, {known}, own=3): ...", scope)
    environment(**{name: scope["everything"]}, **({} if name == "session" else {"session": lambda self: None}))
    said = refused(**{name: lambda self, message: None})
    assert said.endswith(
        f"Dice.{name} has the parameter 'message', for which gymq has no value; name some of {known}, give it a default, "
        "or rename a method that is no hook"
    )


def test_only_hooks_that_ask_may_name_the_answer():
    assert "'answer'" in refused(open=lambda self, answer: None)
    assert "'session'" in refused(session=lambda self, session: None)
    assert "'state'" in refused(policy=lambda self, state: None)


def test_a_hook_must_name_its_parameters():
    def decorator(function: Callable) -> Callable:
        def inner(*args, **kwargs): ...

        return inner

    def good(self, task): ...

    def positional(self, task, /): ...

    assert "takes '**kwargs'" in refused(verify=decorator(good))
    assert "takes '*rest'" in refused(verify=lambda self, *rest: None)
    assert "takes 'task'" in refused(verify=positional)
    assert environment(verify=functools.wraps(good)(decorator(good))).wants("verify") == {"task"}


def test_a_hook_is_a_method():
    assert "has no parameter self" in refused(verify=lambda messages: None)
    assert "has no parameter self" in refused(close=lambda: None)
    assert "is no method" in refused(verify=3)
    assert environment(verify=staticmethod(lambda messages: None)).wants("verify") == {"messages"}
    assert environment(verify=None).spec().verify.present is False


def test_a_mark_of_hooks_on_something_else_is_refused():
    assert "is marked @hook, which is for close, open, respond, session, verify" in refused(grade=hook(lambda self: None))
    assert "is marked @hook" in refused(policy=hook(lambda self: None))
    assert "looks like the hook verify" in refused(vrify=hook(lambda self: None))


class Card(msgspec.Struct):
    rng: random.Random


class Hand(msgspec.Struct):
    cards: dict[str, list[Card | None]]
    next: Hand | None = None


class Loose(msgspec.Struct):
    anything: Any
    thing: object
    seed: int = 0


class Mixture(msgspec.Struct):
    seed: int
    union: list[int] | tuple[int, ...]


class Early(msgspec.Struct):
    later: Later | None = None


@dataclass
class Data:
    rng: random.Random


def test_a_state_that_cannot_be_stored_is_refused_by_its_field():
    said = refused(State=Hand)
    assert f"{__file__}:" in said
    assert "Hand has the field cards.rng of type Random, which cannot be stored as the State of Dice is" in said
    assert "Data has the field rng of type Random" in refused(State=Data)
    assert "Mixture has the field union, which cannot be stored" in refused(State=Mixture)
    assert "Random is a type of its own" in refused(State=random.Random)
    assert "has as State no class but" in refused(State=Loose(1, 2))


def test_a_state_of_plain_data_is_none_to_refuse():
    environment(State=Loose)
    environment(State=Early)


class Later(msgspec.Struct):
    n: int = 0


def test_an_agent_that_cannot_act_is_refused():
    def refusal(**members: Any) -> str:
        with pytest.raises(UsageError) as error:
            type("Mine", (Agent,), members)
        return str(error.value)

    async def act(self, view): ...

    def three(self, view, more): ...

    assert "Mine.act must return its answer at once; define it with def" in refusal(act=act)
    assert "Mine.act cannot be called as gymq does (missing a required argument: 'more'); define act(self, view)" in refusal(
        act=three
    )
    assert "Mine.obsrve looks like the hook observe" in refusal(act=lambda self, view: None, obsrve=lambda self, call: None)
    assert "Mine defines no act(self, view)" in refusal(name="mine")
    assert "Mine.acct looks like the hook act" in refusal(acct=lambda self, view: None)
    base = type("Base", (Agent,), {})
    assert isinstance(type("Good", (base,), {"name": "good", "act": lambda self, view: Generate()})().act(None), Generate)


@pytest.mark.parametrize(
    ("secrets", "says"),
    [
        ("SEARCH_KEY", "write the names of variables as a tuple"),
        (("a b",), "no name of a variable"),
        ((1,), "no name of a variable"),
        (("GYMQ_REDIS_URL",), "is gymq's own"),
    ],
)
@pytest.mark.parametrize("base", [Environment, Backend])
def test_secrets_are_a_tuple_of_names_of_variables_and_none_is_gymqs(base, secrets, says):
    with pytest.raises(UsageError, match=says) as refused:
        type("Mine", (base,), {"secrets": secrets, "name": "mine"})
    assert "\n" not in str(refused.value)
