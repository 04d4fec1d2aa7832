"""Lua scripts have one typed function each, and reach connections only as calls."""

from __future__ import annotations

import ast
import inspect
from importlib.resources import files
from pathlib import Path

import pytest

from gymq.store import scripts
from gymq.store.scripts import CommitStep, ReplyEntry, RolloutEnd, Send
from gymq.store.scripts.script import pack

ROOT = Path(__file__).parents[4]

SOURCES = [
    path
    for folder in ("gymq", "workers", "tests", "bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]

LUA = {
    path.name.removesuffix(".lua"): path.read_text() for path in files("gymq.store.lua").iterdir() if path.name.endswith(".lua")
}


def test_every_script_has_one_function_of_its_name():
    functions = {name for name in scripts.__all__ if inspect.isfunction(getattr(scripts, name))}
    assert functions == set(LUA)
    # and no other part of the package makes a call of a script
    made = [
        node.args[0].value
        for path in (ROOT / "gymq").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "ScriptCall"
    ]
    assert sorted(made) == sorted(LUA)


def test_no_connection_is_given_a_scripts_name():
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("run", "insist", "script", "register_script")
        if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value in LUA
    ]
    assert named == []


@pytest.mark.parametrize("name", sorted(LUA))
def test_every_script_lists_its_keys_its_arguments_and_its_reply(name):
    header = LUA[name].split("local ")[0]
    assert "KEYS[1]" in header and "ARGV" in header and "Returns" in header


def test_structs_are_packed_as_arrays_without_what_is_unset_at_their_end():
    reply = ReplyEntry("r.0.0", 1, 0, b"\xff")
    assert pack([reply]) == b"\x91\x97" + b"\xa5r.0.0" + b"\x01\x00" + b"\xa1\xff" + b"\xa0" * 3
    step = CommitStep("r", 0, sends=[Send("m", b"c")], final=RolloutEnd("r", 0, 1, "completed", b"{"))
    unset, send, end = b"\xc0", b"\x92\xa1m\xa1c", b"\x95\xa1r\x00\x01\xa9completed\xa1{"
    assert pack(step) == b"\x9d\xa1r\x00\xa0\xa0" + b"\x90" * 3 + b"\x91" + send + b"\x00" + end + b"\xc2" + unset + b"\xc2"
