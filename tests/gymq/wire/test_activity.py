"""Activities: their sum over processes, and the split of the last minute's time."""

from __future__ import annotations

import msgspec

from gymq.wire.activity import Activity, CallTimes, InWork, merge, time_split


def test_the_time_is_split_into_the_stages_of_calls_that_ended_and_of_those_in_work():
    activity = Activity(
        ended={
            "generate": CallTimes(2, 0, 1.0, 2.0, 3.0),
            "tool": CallTimes(1, 0, 0.5, 0.0, 4.0),
            "verify": CallTimes(worked=5),
        },
        working={"ask": InWork(4, 8.0, 3.0), "open": InWork(1, 1.0, 1.0)},
    )
    assert time_split(activity, 1) == {"queue": 1.5, "limit": 4.0, "model": 9.0, "tool": 5.0, "verify": 5.0}


def test_more_requests_wait_for_a_limit_than_are_in_work_only_for_a_moment():
    activity = Activity(working={"generate": InWork(2, 8.0, 3.0)})
    assert time_split(activity, 3) == {"queue": 0.0, "limit": 8.0, "model": 0.0, "tool": 0.0, "verify": 0.0}


def test_activities_of_several_processes_are_summed():
    one = Activity({"tool": CallTimes(1, 1, 2, 3, 4)}, {"tool": InWork(1, 2, 3)}, 1, 2, 3, "old")
    other = Activity({"tool": CallTimes(1, 0, 1, 1, 1)}, {"tool": InWork(1, 1, 9)}, 1, 1, 1)
    assert merge([one, other]) == Activity({"tool": CallTimes(2, 1, 3, 4, 5)}, {"tool": InWork(2, 3, 9)}, 2, 3, 4, "old")
    assert merge([]) == Activity()


def test_an_idle_worker_publishes_next_to_nothing():
    assert msgspec.json.encode(Activity()) == b"{}"
