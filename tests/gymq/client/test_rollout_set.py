"""Which rollouts a consumer has: as a set would say, in a fraction of its memory."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymq.client.rollout_set import RolloutSet
from gymq.errors import DataError


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3))))
def test_it_says_what_a_set_would_say(places):
    seen, known = RolloutSet("r"), set()
    for row, sample in places:
        rid = f"r.{row}.{sample}"
        assert (rid in seen) == (rid in known)
        assert seen.add(rid) == (rid not in known)
        known.add(rid)
        assert rid in seen
    assert len(seen) == len(known)
    assert sorted(seen) == sorted(known)


@pytest.mark.parametrize(
    "rid", ["s.1.1", "r.1", "r.1.x", "r.-1.0", "r.1.1.1", "", "r.\u0661.0", "r.999999999999.0", "r.1.9999999"]
)
def test_what_is_no_rollout_of_the_run_is_refused(rid):
    with pytest.raises(DataError):
        RolloutSet("r").add(rid)


@pytest.mark.slow
def test_a_million_rollouts_are_a_quarter_of_a_mebibyte_at_most():
    seen = RolloutSet("r")
    for row in range(250_000):
        for sample in range(4):
            seen.add(f"r.{row}.{sample}")
    assert len(seen) == 1_000_000
    assert sum(sys.getsizeof(bits) for bits in seen._bits.values()) <= 256 * 1024
