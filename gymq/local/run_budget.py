"""The budget of one `gymq run`: what its rollouts may cost, and how long it may last."""

from __future__ import annotations

from gymq.errors import UsageError
from gymq.local.run_options import RunOptions
from gymq.store.run_status import RunStatus
from gymq.wire.calls import Usage
from gymq.wire.pricing import Prices


def check_prices(options: RunOptions, prices: Prices | None) -> None:
    """Check that what a run costs can be known, if that is bounded.

    Args:
        options: the options.
        prices: the prices of tokens; None: unknown.

    Raises:
        UsageError: the price of a model is missing.
    """
    if options.max_cost is None:
        return
    if prices is None:
        raise UsageError("--max-cost needs the prices of the models; give them with --prices P.yaml")
    for spec in filter(None, (options.model, options.judge)):
        if prices.price(spec) is None:
            raise UsageError(f"--max-cost needs the price of model {spec!r}, which --prices does not have; add it there")


class RunBudget:
    """The budget of one command.

    Args:
        options: its options, with the limits and the prices.
        before: the run's status when the command began.
    """

    def __init__(self, options: RunOptions, before: RunStatus) -> None:
        self._max_cost = options.max_cost
        self._max_time = options.max_time
        self._concurrency = options.concurrency
        self._prices = options.price_table
        self._before = before

    def room(self, status: RunStatus) -> int | None:
        """Return how many more rollouts, those in flight among them, the money is enough for; None: any number.

        Args:
            status: the run's status now.
        """
        if self._max_cost is None:
            return None
        spent, ended = self._spent(status), _ended(status) - _ended(self._before)
        if not ended:
            return self._concurrency  # what one costs will be known when one has ended
        if not spent:
            return None  # the server counts no tokens, or they cost nothing
        return max(0, int((self._max_cost - spent) * ended / spent))

    def over(self, status: RunStatus, lasted: float) -> str:
        """Return which limit is reached, in words; empty: none.

        A cost is reached when it is spent, or when the rest is not enough for a rollout more and none is in flight.

        Args:
            status: the run's status now.
            lasted: seconds since the command began.
        """
        if self._max_time is not None and lasted >= self._max_time:
            return f"--max-time: {self._max_time:g} s are over"
        if self._max_cost is None or self._prices is None:
            return ""
        spent = self._spent(status)
        if spent < self._max_cost and (self.room(status) != 0 or status.live):
            return ""
        return f"--max-cost: {spent:.4g} of {self._max_cost:g} {self._prices.currency} are spent"

    def _spent(self, status: RunStatus) -> float:
        """Return what the rollouts that ended since the command began have cost."""
        if self._prices is None:
            return 0.0
        spent = 0.0
        for spec, usage in status.tokens.items():
            old = self._before.tokens.get(spec, Usage())
            fresh = Usage(
                max(0, usage.input_tokens - old.input_tokens),
                max(0, usage.output_tokens - old.output_tokens),
                max(0, usage.cached_tokens - old.cached_tokens),
            )
            spent += self._prices.cost(spec, fresh) or 0.0
        return spent


def _ended(status: RunStatus) -> int:
    """Return how many rollouts have ended, without those that the file had already."""
    return status.ended - status.by_status.get("kept", 0)
