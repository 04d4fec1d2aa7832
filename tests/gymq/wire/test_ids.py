"""Ids: what is built is split again, and what is forged is told from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymq.wire.ids import CallId, PartId, RolloutId


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", fullmatch=True), st.integers(0, 10**9 - 1), st.integers(0, 10**6 - 1))
def test_an_id_is_split_into_what_it_was_built_from(run, row, sample):
    rollout = RolloutId(run, row, sample)
    assert RolloutId.parse(str(rollout)) == RolloutId.check(str(rollout)) == RolloutId.check(str(rollout).encode()) == rollout
    assert (rollout.group, rollout.shard(7)) == (f"{run}.{row}", row % 7)
    call = CallId(str(rollout), row, sample)
    assert str(call) == f"{rollout}:{row}:{sample}"
    assert CallId.parse(str(call)) == call


@pytest.mark.parametrize(
    "forged",
    [
        *("", "r", "r.1", "r.1.x", "r.-1.0", "r.1.1.1", "r. 1.0", "r.1_0.0", "r.\u0661.0", "r.1.0\n", "-r.1.0", "r:1:0"),
        *("r.1234567890.0", "r.1.1234567", "r" * 101 + ".1.0", "\udce9.1.0"),
    ],
)
def test_what_is_no_id_is_told(forged):
    assert RolloutId.check(forged) is None
    assert RolloutId.check(forged.encode("utf-8", "surrogateescape")) is None
    assert RolloutId.check(b"r.\xff.0") is None


@given(st.integers(0, 10**9 - 1), st.none() | st.integers(0, 10**6 - 1))
def test_a_part_of_a_run_is_written_with_the_run_or_without(row, sample):
    part = PartId(row, sample)
    assert PartId.check(str(part)) == PartId.check(f"r-1.{part}", "r-1") == part
    assert part.shard(7) == row % 7


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1.", ".1", "1.2.3", "r.1", "r.r.1", "1.-2", " 1", "1\n", "\u0661", "1234567890", "1.1234567"]
)
def test_what_is_no_part_of_a_run_is_told(text):
    assert PartId.check(text) is None
    assert PartId.check(f"r.{text}", "r") is None


@pytest.mark.parametrize("text", ["r.1", "r.a.0", ""])
def test_parsing_what_gymq_has_not_made_raises(text):
    with pytest.raises(ValueError):
        RolloutId.parse(text)
