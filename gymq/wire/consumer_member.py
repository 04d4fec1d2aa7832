"""The address of one reader of a run's results: consumer, member and epoch."""

from __future__ import annotations

from secrets import token_hex
from typing import NamedTuple, Self

#: The member that a consumer of one process has.
ONLY_MEMBER = "0"

#: Stands for a member where an operator acts for a consumer; no process can join as it.
OPERATOR = ""

#: Bytes of an epoch's token: two processes of one member never have the same, in whatever history of Redis.
_TOKEN_SIZE = 6


class Epoch(NamedTuple):
    """One process's time as a member; as text `number-token`.

    Args:
        number: it grows with each process that becomes this member.
        token: drawn by the process: a number comes again when Redis has lost the one before.
    """

    number: int
    token: str

    @classmethod
    def after(cls, before: Self | None) -> Self:
        """Return an epoch that has not begun: its number is the least that it may get.

        Args:
            before: the process's last epoch; None: it had none.
        """
        return cls(before.number + 1 if before else 1, token_hex(_TOKEN_SIZE))

    def __str__(self) -> str:
        return f"{self.number}-{self.token}"


class ConsumerMember(NamedTuple):
    """The address of a reader: scripts refuse it once another process has become the member.

    Args:
        run: the run's name.
        consumer: the consumer's name.
        member: the member's name; members of one consumer share its results, each gets a part.
        epoch: of the process.
    """

    run: str
    consumer: str
    member: str
    epoch: Epoch
