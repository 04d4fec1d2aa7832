"""The budgets of new tries after a fault, and the waits before them."""

from __future__ import annotations

import random

from gymq.errors import Fault
from gymq.store.runs import RunConfig

from .state import State

#: Seconds before calls are sent again for the first time; each further wait is twice as long.
FIRST_WAIT = 1.0

#: Seconds that a wait may last at most: a service that is back is found within this.
LONGEST_WAIT = 30.0

#: Part of a wait by which it is spread at random, so that what failed together does not come back together.
SPREAD = 0.25

#: Doublings after which the longest wait is reached anyway.
_DOUBLINGS = 10


def take(state: State, config: RunConfig, call: str, fault: Fault, now: float) -> bool:
    """Take one try from the budget of a fault's kind and set when it is to be; False: the budget is spent.

    Args:
        state: the rollout's.
        config: its run.
        call: the kind of the call that ended with the fault.
        fault: what it ended with.
        now: seconds since the epoch.
    """
    if fault.kind == "poison":
        return False  # it is not to kill more
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
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(state.tries, _DOUBLINGS))
    state.tries += 1
    state.resume = now + wait * random.uniform(1 - SPREAD, 1 + SPREAD)
    return True


def last_fault(state: State, fault: Fault) -> Fault:
    """Return a fault that ends the retries, with how often the call was sent."""
    return fault if not state.tries else Fault(fault.kind, f"{fault.message} (sent {state.tries + 1} times)")
