"""Replicas follow a burst up and down, by the metrics alone."""

from __future__ import annotations

import msgspec
import pytest

from bench.autoscale import SCALED, measure, picture, sheets
from bench.hpa import scaled_objects
from bench.prometheus import NoPrometheus, binary


@pytest.mark.heavy
def test_replicas_come_with_a_burst_and_go_after_it(tmp_path):
    try:
        binary()
    except NoPrometheus as error:
        pytest.skip(str(error))
    # Given resource workers that KEDA's numbers scale from one to three, twenty times faster than real
    scaled = msgspec.structs.replace(scaled_objects(SCALED)["resource"], max_replica_count=3)
    # When 1,500 calls come at once; it fails if one is lost or a drained worker does not end well
    found = measure(tmp_path, scaled, ((1.0, 1500),), 20.0, print)
    # Then there were three, and in the end there is one
    assert found["most"] == 3
    assert found["samples"][-1].replicas == 1
    assert found["drained"] >= 3
    # And the curve can be told and drawn
    assert [title for title, _, _ in sheets(found)] == ["Bursts", "The curve"]
    assert picture(found).endswith("</svg>\n")
