"""The work in hand: what log lines of user code and of gymq belong to."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class Work(Protocol):
    """Something that is worked on for a rollout, such as a call."""

    @property
    def run(self) -> str:
        """The run's name."""
        ...

    @property
    def rollout(self) -> str:
        """The rollout's id."""
        ...

    @property
    def id(self) -> str:
        """The call's id."""
        ...


#: The work of this task or thread; None: it works on nothing in particular.
work_in_hand: ContextVar[Work | None] = ContextVar("work_in_hand", default=None)
