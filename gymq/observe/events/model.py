"""Events of requests to models, rate limits and weights."""

from __future__ import annotations

from gymq.observe.events.event import Event


class ModelRequested(Event, frozen=True, gc=False):
    """A request to a model server has ended; a call may take several.

    Args:
        endpoint: the server's address without user, password and query.
        status: the HTTP status; 0: there was no answer, or none that can be read.
        seconds: how long it took.
        retry_after: seconds that the server asked to wait; 0: it asked for none.
    """

    endpoint: str
    status: int
    seconds: float
    retry_after: float = 0.0


class LimitInForce(Event, frozen=True, gc=False):
    """A rate limit makes calls wait, or what it grants has changed much; told at most every few seconds.

    Args:
        endpoint: the server's address, or the model.
        limit: `requests`, `tokens`, or `learned`: found from refusals.
        rate: what it grants, per second.
        waiting: requests of this process that wait for it.
    """

    endpoint: str
    limit: str
    rate: float
    waiting: int


class LimitLifted(Event, frozen=True, gc=False):
    """A learned rate limit is no longer in force.

    Args:
        endpoint: the server's address, or the model.
        limit: as in `LimitInForce`.
    """

    endpoint: str
    limit: str


class ModelLoading(Event, frozen=True, gc=False):
    """A model worker loads its model; it takes no mail before `WorkerReady`.

    Args:
        model: the SPEC.
    """

    model: str


class WeightsLoading(Event, frozen=True, gc=False):
    """A model worker begins to load other weights.

    Args:
        model: the SPEC.
        version: the policy version.
        mode: what becomes of calls in flight: `keep`, `wait` or `abort`.
    """

    model: str
    version: int
    mode: str


class WeightsLoaded(Event, frozen=True, gc=False):
    """A model worker samples with other weights.

    Args:
        model: the SPEC.
        version: the policy version.
        seconds: from the word to the end of the update.
    """

    model: str
    version: int
    seconds: float


class WeightsFailed(Event, frozen=True, gc=False):
    """A model worker could not load weights, and leaves.

    Args:
        model: the SPEC.
        version: the policy version.
        reason: one line.
    """

    model: str
    version: int
    reason: str
