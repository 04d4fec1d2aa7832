"""What a person writes to make a model backend: where a model worker gets its answers from."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol

import msgspec

from gymq.errors import UsageError
from gymq.wire.calls import Generated, Tokens
from gymq.wire.message import Conversation
from gymq.wire.task import Task

#: Seconds' worth of a limit that may be used at once after a pause: as long as a process that waits sleeps at most, so that
#: nothing is lost meanwhile.
BURST = 2.0


class Request(msgspec.Struct):
    """One request for the next message of a conversation.

    Args:
        rollout: the rollout's id, which its conversation keeps over all its requests; of a verifier's question, another.
        environment: the environment's name.
        messages: the conversation so far.
        body: the request's fields but for `model` and `messages` (tools, sampling parameters), a JSON object.
        task: the task; only given if the backend's `needs_task` says so.
        waited: seconds that the backend waited for rate limits; the backend adds to it.
        history: reads from Redis the token ids of the answers that this rollout has got so far, whoever gave them, oldest
            first, each with the index of its message; None: the conversation has none. For a backend that has not kept
            them: the conversation comes from another worker.
        born: when the run was created, in seconds since the epoch: a run may take the name of one that was removed.
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

#: Seconds of a server's Retry-After that we honour; longer ones (quotas by the hour) would only hold a place.
MAX_RETRY_AFTER = 60.0


class Limit(msgspec.Struct, frozen=True):
    """A token bucket that a person asked for.

    Args:
        name: what it counts, as `requests`.
        rate: how many a second.
        burst: how many at once, after a pause; what costs more is granted by a full bucket, and leaves a debt.
    """

    name: str
    rate: float
    burst: float


class Permit(msgspec.Struct):
    """Leave for one request.

    Args:
        costs: what it costs of each limit.
        at: the server's ms at which it was granted, 0: none was needed.
        waited: seconds that it took.
    """

    costs: list[float]
    at: int = 0
    waited: float = 0.0


class Limiter(Protocol):
    """Grants permits for one endpoint's requests, within the limits that all processes share."""

    async def enter(self, patience: float = PERMIT_WAIT, **costs: float) -> Permit:
        """Wait until a request may be sent.

        Args:
            patience: seconds that it may take.
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
    """What has rate limits of its own: a backend, or each server that it asks."""

    #: Shared rate limits: who has an `account` gets them before `start`, asks for a `Permit` before each request, and says
    #: what became of it; None outside a worker.
    limiter: Limiter | None = None

    def account(self) -> str:
        """What the endpoint counts its rate limits by, as a `gymq.rate.digest`; "": nothing limits it."""
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

    #: Conversations stay with the worker that answered last, which keeps something of theirs: a prefix in its cache, say.
    affine: ClassVar[bool] = False

    #: Whether it takes new weights under way, by `update_weights`.
    versioned: ClassVar[bool] = False

    #: The policy version that it samples with, and stamps its tokens with; 0: before it got any. Its worker sets it once
    #: `update_weights` has returned; a backend whose calls go on sets it itself as it swaps the weights.
    version: int = 0

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.model = model
        self.options = options
        self.limits = _limits(options)
        if self.limits and type(self).account is Limited.account and type(self).limited is Backend.limited:
            raise UsageError(f"model {self.name}: takes no rpm or tpm; nobody limits how often it is asked")

    def limited(self) -> list[Limited]:
        """What has rate limits of its own: unless it asks several servers, the backend itself."""
        return [self]

    async def probe(self) -> str:
        """What is wrong with the model right now, in one line for a person; "" if nothing is known to be."""
        return ""

    async def start(self) -> None:
        """Open connections, load weights; called on the loop that will call `generate`."""

    def needs_task(self, environment: str) -> bool:
        """Whether requests of an environment's rollouts must carry the task; models are not told it."""
        return False

    async def generate(self, request: Request) -> Generated:
        """Answer one request; hundreds run at once.

        Raises:
            CallError: `model`, `model_unavailable`, `context_overflow`, `replay_miss` or `timeout`.
        """
        raise NotImplementedError(f"backend {type(self).__name__} defines no generate(request)")

    async def update_weights(self, path: str, version: int, mode: str) -> None:
        """Sample with other weights from now on; called after `start`, never twice at once.

        No call begins meanwhile. With mode `wait` and `abort` none is in flight; with `keep` those in flight are to stand
        still, and to go on with the new weights: their tokens say which sampled them.

        Args:
            path: where the weights lie; it exists.
            version: their policy version.
            mode: `keep`, `wait` or `abort`.

        Raises:
            Exception: they cannot be loaded: the worker ends, as nobody knows what this backend would answer with.
        """
        raise NotImplementedError(f"backend {type(self).__name__} defines no update_weights(path, version, mode)")

    async def stop(self) -> None:
        """Close what `start` opened."""

    def capacity(self) -> int | None:
        """How many calls it can work on now; None: as many as the worker may have. Asked many times a second."""
        return None

    def health(self) -> str:
        """Why it can answer nothing any more, in one line; "": it can. Its worker then ends. Asked many times a second."""
        return ""

    def load(self) -> dict[str, float]:
        """Numbers for people and for routing: what it is at."""
        return {}


def _limits(options: dict[str, Any]) -> list[Limit]:
    """The limits that `rpm` and `tpm` state, both per minute."""
    found: list[Limit] = []
    for option, name in (("rpm", "requests"), ("tpm", "tokens")):
        value = options.get(option)
        if value is None:
            continue
        try:
            rate = float(value) / 60
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 < rate < math.inf:
            raise UsageError(f"{option} is {value!r}; it is a number above 0, of {name} per minute")
        found.append(Limit(name, rate, max(1.0, rate * BURST)))
    return found
