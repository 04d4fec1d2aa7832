"""The budgets of new tries after a fault, and the waits before them."""

from __future__ import annotations

import random

from gymq.backoff import backoff
from gymq.errors import Fault
from gymq.store.runs import RunConfig

from .state import State

#: Seconds before calls are sent again for the first time; doubled with each further try in a row.
FIRST_WAIT = 1.0

#: Seconds that a wait lasts at most: a service that is back is noticed within this.
LONGEST_WAIT = 30.0

#: Share of a wait by which it is spread at random, so that calls that failed together do not come back together.
SPREAD = 0.25


def take(state: State, config: RunConfig, call: str, fault: Fault, now: float) -> bool:
    """Take one try from the budget of a fault's kind, and set the time of the try; return False if the budget is spent.

    Args:
        state: the rollout's state.
        config: its run's configuration, with the budgets.
        call: the kind of the call that ended with the fault.
        fault: the fault.
        now: seconds since the epoch.
    """
    if fault.kind == "poison":
        return False  # a call that killed its processes must not kill more
    if not fault.passes(call):
        if state.data >= config.data_retries:
            return False
        state.data += 1
    elif state.phase == "verifying":
        if state.verify >= config.verify_retries:
            return False
        state.verify += 1
    else:
        if state.infra >= config.infra_retries:
            return False
        state.infra += 1
    state.tries += 1
    wait = backoff(state.tries, FIRST_WAIT, LONGEST_WAIT)
    state.resume = now + wait * random.uniform(1 - SPREAD, 1 + SPREAD)
    return True


def last_fault(state: State, fault: Fault) -> Fault:
    """Return a fault that ends the retries, with how often the call was sent.

    Args:
        state: the rollout's state.
        fault: the last try's fault.
    """
    return fault if not state.tries else Fault(fault.kind, f"{fault.message} (sent {state.tries + 1} times)")
