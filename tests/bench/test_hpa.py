"""What the player of the autoscaler decides: Kubernetes' formula, windows and policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.hpa import Autoscaler, scaled_objects

SCALED = scaled_objects(Path(__file__).parents[2] / "deploy/kubernetes/components/keda/scaledobjects.yaml")


@pytest.fixture
def resource() -> Autoscaler:
    """The autoscaler of the resource workers: a backlog of 5 s, 0.8 busy, 1 to 40 replicas, shrinking after 120 s."""
    return Autoscaler(SCALED["resource"])


def test_each_role_has_its_numbers():
    assert set(SCALED) == {"agent", "model", "resource", "executor"}
    assert [trigger.target for trigger in SCALED["resource"].triggers] == [5, 0.8]


@pytest.mark.parametrize(
    ("ready", "numbers", "wanted"),
    [
        (4, [5.0, 0.8], 4),  # at the target
        (4, [5.4, 0.8], 4),  # within a tenth of it
        (4, [10.0, 0.8], 8),  # twice the backlog
        (4, [0.0, 0.4], 4),  # half as busy: two are wanted, but not before the window is over
        (4, [2.5, 1.0], 5),  # the larger demand counts
        (2, [10.0, 0.8], 4),  # two of four are ready: they would need to be four
    ],
)
def test_the_formula(resource, ready, numbers, wanted):
    # Given that four were wanted a moment ago
    resource.decide(0.0, 4, 4, [5.0, 0.8])
    assert resource.decide(1.0, 4, ready, numbers) == wanted


def test_it_doubles_or_adds_four_each_15_seconds(resource):
    assert resource.decide(0.0, 1, 1, [500.0, 1.0]) == 5
    assert resource.decide(1.0, 5, 1, [500.0, 1.0]) == 5
    assert resource.decide(16.0, 5, 5, [500.0, 1.0]) == 10
    assert resource.decide(32.0, 10, 10, [500.0, 1.0]) == 20


def test_it_shrinks_to_what_was_wanted_within_the_window_and_by_half_a_minute(resource):
    resource.decide(0.0, 16, 16, [5.0, 0.8])
    assert resource.decide(119.0, 16, 16, [0.0, 0.0]) == 16
    assert resource.decide(121.0, 16, 16, [0.0, 0.0]) == 8
    assert resource.decide(130.0, 8, 8, [0.0, 0.0]) == 8
    assert resource.decide(182.0, 8, 8, [0.0, 0.0]) == 4


def test_time_can_pass_faster():
    fast = Autoscaler(SCALED["resource"], speed=10)
    fast.decide(0.0, 4, 4, [5.0, 0.8])
    assert fast.decide(11.9, 4, 4, [0.0, 0.0]) == 4
    assert fast.decide(12.1, 4, 4, [0.0, 0.0]) == 2
