"""Errors: those that people meet end the command with a code, those that are recorded have a kind."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from gymq import errors
from gymq.errors import CallError, Fault, FaultKind, GymqError

RAISED = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, GymqError) and e is not CallError]


@pytest.mark.parametrize(
    ("name", "code"),
    [("GymqError", 1), ("UsageError", 2), ("UnknownName", 2), ("DataError", 3), ("ServerUnreachable", 4), ("SinkBusy", 5)],
)
def test_the_command_line_ends_with_the_errors_code(name, code):
    assert getattr(errors, name).exit_code == code


@pytest.mark.parametrize("error", RAISED)
def test_every_error_says_what_it_is_given(error):
    assert str(error("one line")) == "one line"
    assert error.exit_code in range(1, 6)


def test_a_call_error_carries_its_fault():
    error = CallError("timeout", "took longer than 3 s")
    assert (error.fault, str(error)) == (Fault("timeout", "took longer than 3 s"), "took longer than 3 s")


def test_a_fault_comes_back_as_it_was_recorded():
    fault = Fault("memory", "too much")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fault), type=Fault) == fault


def test_what_truncates_is_a_known_kind_of_fault():
    assert set(get_args(FaultKind)) > errors.TRUNCATING


def test_every_kind_of_fault_stands_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
    listed = {kind for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.M) for kind in re.findall(r"`(\w+)`", row)}
    assert set(get_args(FaultKind)) <= listed
