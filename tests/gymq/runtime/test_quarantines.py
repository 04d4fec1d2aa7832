"""Several quarantines of one worker: as many as suspects wait, up to a bound, one more in each look."""

from __future__ import annotations

import pytest

from gymq.runtime import quarantines
from gymq.runtime.quarantines import BEGINNING, Quarantines


class Child:
    """Stands in for a quarantine."""

    def __init__(self, *_: object) -> None:
        self.started, self.due = 0.0, 0.0
        self.running = False
        self.starts = 0

    def look(self) -> None:
        """Nothing has happened."""

    async def start(self) -> None:
        self.running, self.started = True, quarantines.time.monotonic()
        self.starts += 1

    async def end(self) -> None:
        self.running = False


class Time:
    """A clock that is set by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(quarantines, "Quarantine", Child)
    monkeypatch.setattr(quarantines, "time", clock)
    return clock


async def running(all_: Quarantines, *waiting: int) -> list[int]:
    """How many run after each look."""
    counts = []
    for count in waiting:
        await all_.look(count)
        counts.append(sum(one.running for one in all_._all))
    return counts


async def test_one_suspect_gets_one_quarantine(clock, settings):
    assert await running(Quarantines("resource", settings, {}, 4), 0, 1, 1, 1) == [0, 1, 1, 1]


async def test_many_suspects_get_several_quarantines_up_to_the_bound(clock, settings):
    all_ = Quarantines("resource", settings, {}, 3)
    assert await running(all_, 149, 149, 149, 148) == [1, 2, 3, 3]
    # And those that work count as on their way no longer
    clock.now += BEGINNING
    assert await running(all_, 1) == [3]


async def test_one_that_died_is_put_off_and_another_is_started(clock, settings):
    all_ = Quarantines("resource", settings, {}, 2)
    await all_.look(5)
    first = all_._all[0]
    first.running, first.due = False, clock.now + 60
    assert await running(all_, 5, 5) == [1, 1]
    assert (first.starts, all_._all[1].starts) == (1, 1)
    clock.now += 60
    assert await running(all_, 5) == [2]


async def test_all_end_with_their_worker(clock, settings):
    all_ = Quarantines("resource", settings, {}, 2)
    await running(all_, 5, 5)
    await all_.end()
    assert not any(one.running for one in all_._all)
