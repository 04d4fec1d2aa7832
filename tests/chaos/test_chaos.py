"""A thousand rollouts through everything that can die."""

from __future__ import annotations

import os
import secrets

import pytest

from gymq.settings import Settings

from .checker import check
from .driver import FULL, Driver
from .report import note

#: Rollouts of the first scenario, and of the one with the shipped limit.
ROLLOUTS, SHIPPED = FULL or 100, 200 if FULL else 60

#: The seed of all faults; a failing run prints its own.
SEED = int(os.environ.get("GYMQ_CHAOS_SEED") or 0) or secrets.randbelow(1 << 32)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_any_process_may_die_at_any_moment_and_every_sample_ends_once(spawn, settings, tmp_path, no_leaks):
    driver = Driver(spawn, settings, tmp_path, "chaos", ROLLOUTS, SEED)
    driver.add_workers()
    driver.add_sinks()
    driver.add_producer(pause=0.01)
    driver.drive(limit=800)
    verdict = check(driver)
    note("workers, sinks and the producer", verdict, SEED)
    verdict.good(within=10)


@pytest.mark.heavy
@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_the_shipped_limit_of_five_seconds_keeps_the_bound_of_ten(spawn, settings, tmp_path, no_leaks):
    driver = Driver(spawn, Settings(redis_url=settings.redis_url), tmp_path, "shipped", SHIPPED, SEED)
    driver.add_workers()
    driver.add_sinks()
    driver.add_producer(pause=0.02)
    driver.drive(limit=250)
    verdict = check(driver)
    note("the same under the shipped limit of 5 s", verdict, SEED)
    verdict.good(within=10)
