"""The interface of a model backend, from which a model worker gets its answers."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import ClassVar, Protocol

import msgspec

from gymq.errors import UsageError
from gymq.wire.calls import Generated, Tokens
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Conversation
from gymq.wire.task import Task

#: Seconds' worth of a limit that may be used at once after a pause: the longest sleep of a process that waits for permits, so
#: that no permit is lost meanwhile.
BURST = 2.0


class Request(msgspec.Struct):
    """One request for the next message of a conversation.

    Args:
        rollout: the rollout's id, the same in all requests of its conversation; a verifier's question has one of its own.
        environment: the environment's name.
        messages: the conversation so far.
        body: the request's fields but for `model` and `messages` (tools, sampling parameters), a JSON object.
        task: the task, if the backend's `needs_task` asks for it.
        waited: seconds that the backend waited for rate limits; the backend adds to it.
        history: reads from Redis the token ids of this rollout's answers, oldest first, each with the index of its message,
            for a backend that has not kept them since another worker answered; None: the conversation has none.
        born: the run's creation, seconds since the epoch; tells it from a removed run of the same name.
    """

    rollout: str
    environment: str
    messages: Conversation
    body: bytes
    task: Task | None = None
    waited: float = 0.0
    history: Callable[[], Awaitable[list[tuple[int, Tokens]]]] | None = None
    born: float = 0.0


#: Seconds that a request waits for permits, over all its tries; less than the hour after which its call is overdue.
PERMIT_WAIT = 3000.0

#: Seconds of a server's Retry-After that are honoured; longer ones (quotas by the hour) would only hold a place.
MAX_RETRY_AFTER = 60.0


class Limit(msgspec.Struct, frozen=True):
    """A token bucket, as an option states it.

    Args:
        name: the counted unit, `requests` or `tokens`.
        rate: units a second.
        burst: units at once, after a pause; a full bucket grants a higher cost too, and goes into debt.
    """

    name: str
    rate: float
    burst: float


class Permit(msgspec.Struct):
    """A permit for one request.

    Args:
        costs: the request's cost of each limit.
        at: when it was granted, ms of Redis's clock; 0: no limit was in force.
        waited: seconds until it was granted.
    """

    costs: list[float]
    at: int = 0
    waited: float = 0.0


class Limiter(Protocol):
    """Grants permits for one endpoint's requests, within the limits that all processes share."""

    async def enter(self, patience: float = PERMIT_WAIT, **costs: float) -> Permit:
        """Wait until a request may be sent.

        Args:
            patience: seconds to wait at most.
            costs: the request's cost of each limit by name; 1 where not said.

        Raises:
            CallError: `timeout`.
        """
        ...

    def answered(self, permit: Permit, **used: float) -> None:
        """Report a request's answer.

        Args:
            permit: the request's permit.
            used: its true cost of each limit by name, where that differs from the estimate.
        """
        ...

    def correct(self, permit: Permit, **used: float) -> None:
        """Report a request's true cost without an answer.

        Args:
            permit: the request's permit.
            used: its true cost of each limit by name.
        """
        ...

    def refused(self, permit: Permit, retry_after: float | None) -> None:
        """Report that the endpoint refused a request because there are too many.

        Args:
            permit: the request's permit.
            retry_after: seconds in which the endpoint wants no request, or None.
        """
        ...

    async def close(self) -> None:
        """Close its connection."""
        ...


class Limited:
    """Base of each subject of rate limits: a backend, or an endpoint of one."""

    #: The rate limits of its `account`, set before `start`. It asks them for a `Permit` before each request, and reports how
    #: the request ended. None outside a worker.
    limiter: Limiter | None = None

    def account(self) -> str:
        """Return the key by which its server counts rate limits, a `gymq.runtime.rate_limit.digest`; "": it has no limits."""
        return ""


class Backend(Limited):
    """Base of all model backends.

    Args:
        model: what follows the colon in `--model SPEC`.
        options: the command line's other options (`base_url`, `api`, `timeout`, ...), None where not given.

    Raises:
        UsageError: an option is missing or makes no sense.
    """

    name: ClassVar[str] = ""

    #: Whether a quarantine may start a second backend beside this one; False for one that fills a device.
    quarantinable: ClassVar[bool] = True

    #: Whether conversations stay with the worker that answered last, which has their prefix in its cache.
    affine: ClassVar[bool] = False

    #: Whether environments play the model, so that its worker must find them.
    plays_environments: ClassVar[bool] = False

    #: Whether `update_weights` gives it new weights while it serves.
    versioned: ClassVar[bool] = False

    #: The policy version that it samples with and stamps on its tokens; 0: the weights that it started with. Its worker sets it
    #: once `update_weights` has returned; a backend whose calls go on meanwhile sets it as it swaps the weights.
    version: int = 0

    def __init__(self, model: str, options: JsonObject) -> None:
        self.model = model
        self.options = options
        self.limits = _limits(options)
        if self.limits and type(self).account is Limited.account and type(self).limited is Backend.limited:
            raise UsageError(f"model {self.name}: rpm and tpm have no effect on this backend; remove them")

    def limited(self) -> list[Limited]:
        """Return the subjects of rate limits: its endpoints, or the backend itself."""
        return [self]

    async def probe(self) -> str:
        """Return what may keep the model from answering, in one line for a person; "": no defect is known.

        Raises:
            CallError: nothing answers there: no call can succeed now.
        """
        return ""

    async def start(self) -> None:
        """Open connections and load weights, on the loop that will call `generate`."""

    def needs_task(self, environment: str) -> bool:
        """Return whether requests of an environment's rollouts must carry the task; it is never shown to a model."""
        return False

    async def generate(self, request: Request) -> Generated:
        """Answer one request; hundreds run at once.

        Raises:
            CallError: `model`, `model_access`, `model_unavailable`, `context_overflow`, `replay_miss` or `timeout`.
        """
        raise NotImplementedError(f"backend {type(self).__name__} defines no generate(request)")

    async def update_weights(self, path: str, version: int, mode: str) -> None:
        """Load other weights and sample with them from now on; called after `start`, never twice at once.

        No call begins meanwhile. In mode `wait` and `abort` none is in flight; in mode `keep` those in flight stand still and
        go on with the new weights, and their tokens say which weights sampled them.

        Args:
            path: the weights, an existing path.
            version: their policy version.
            mode: `keep`, `wait` or `abort`.

        Raises:
            Exception: they cannot be loaded; the worker ends, since the backend's weights are unknown.
        """
        raise NotImplementedError(f"backend {type(self).__name__} defines no update_weights(path, version, mode)")

    async def stop(self) -> None:
        """Close all that `start` opened."""

    def capacity(self) -> int | None:
        """Return the calls that it can work on now; None: as many as the worker may have. Called many times a second."""
        return None

    def health(self) -> str:
        """Return why it can answer no more, in one line, upon which its worker ends; "": it can. Called many times a second."""
        return ""

    def load(self) -> dict[str, float]:
        """Return its load by name, for `gymq status` and for routing."""
        return {}


def _limits(options: JsonObject) -> list[Limit]:
    """Return the limits of the options `rpm` and `tpm`, both per minute."""
    limits: list[Limit] = []
    for option, name in (("rpm", "requests"), ("tpm", "tokens")):
        value = options.get(option)
        if value is None:
            continue
        try:
            rate = float(value) / 60
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 < rate < math.inf:
            raise UsageError(f"{option} is {value!r}; set it to a number above 0, of {name} per minute")
        limits.append(Limit(name, rate, max(1.0, rate * BURST)))
    return limits
