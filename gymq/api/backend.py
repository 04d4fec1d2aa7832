"""The interface of a model backend, from which a model worker gets its answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec

from gymq.api.definition import check_secrets
from gymq.api.limiter import Limited, learning, limits
from gymq.errors import UsageError
from gymq.wire.calls import Generated, Tokens
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Conversation
from gymq.wire.task import Task


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
        step: how many steps its rollout has made; of requests that wait for permits, those further along go first.
    """

    rollout: str
    environment: str
    messages: Conversation
    body: bytes
    task: Task | None = None
    waited: float = 0.0
    history: Callable[[], Awaitable[list[tuple[int, Tokens]]]] | None = None
    born: float = 0.0
    step: int = 0


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

    #: The variables with secrets that it reads, such as the key of a server; its worker gets no others.
    secrets: ClassVar[tuple[str, ...]] = ()

    #: The policy version that it samples with and stamps on its tokens; 0: the weights that it started with. Its worker sets it
    #: once `update_weights` has returned; a backend whose calls go on meanwhile sets it as it swaps the weights.
    version: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what would fail later.

        Raises:
            UsageError: with file, line and remedy.
        """
        super().__init_subclass__(**kwargs)
        check_secrets(cls, cls.secrets)

    def __init__(self, model: str, options: JsonObject) -> None:
        self.model = model
        self.options = options
        if type(self).account is Limited.account and type(self).limited is Backend.limited:
            for option in ("rpm", "tpm", "learn", "min_rpm"):
                if options.get(option) is not None:
                    raise UsageError(f"model {self.name}: {option} has no effect on this backend; remove it")
        self.limits = limits(options)
        self.learning = learning(options)

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
