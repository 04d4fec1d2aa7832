"""Keys: one shard's prefix before each, no two alike, and all of them in the documentation."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import gymq
from gymq.store.keys import Keys

KEYS = Keys(7)
NAMED = dict(inspect.getmembers(KEYS, inspect.ismethod))
NAMED.pop("__init__")
FIXED = [value for name, value in vars(KEYS).items() if name != "prefix"]
DOCS = Path(__file__).parents[3] / "docs" / "architecture.md"


def test_every_key_carries_the_tag_of_its_shard():
    made = FIXED + [make("x") for make in NAMED.values()]
    assert KEYS.prefix == "gymq:{7}:"
    assert all(key.startswith(KEYS.prefix) and key.count("{") == 1 for key in made)


def test_no_two_kinds_of_key_can_be_the_same():
    made = FIXED + [make("x") for make in NAMED.values()]
    assert len(set(made)) == len(made)


def test_every_key_stands_in_the_documentation():
    table = DOCS.read_text().split("## Keys")[1].split("## States")[0]
    listed = {re.sub(r"<\w+>", "x", name) for name in re.findall(r"`([\w:<>@]+)`", table)}
    for key in FIXED + [make("x") for make in NAMED.values()]:
        assert key.removeprefix(KEYS.prefix) in listed


def test_scripts_and_commands_mean_the_same_keys():
    lua = "".join(path.read_text() for path in (Path(gymq.__file__).parent / "store" / "lua").glob("*.lua"))
    used = set(re.findall(r"P \.\. '(\w+:?)", lua)) | set(re.findall(r"KEYS\[1\] \.\. '(\w+:?)", lua))
    known = {re.sub(r"x.*", "", make("x").removeprefix(KEYS.prefix)) for make in NAMED.values()}
    assert used - known <= {key.removeprefix(KEYS.prefix) for key in FIXED}
    assert {"r:", "t:", "k:", "m:", "run:", "alive:"} <= used
