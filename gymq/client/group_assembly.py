"""The assembly of groups from finished rollouts, in whatever order and history these come."""

from __future__ import annotations

from gymq.wire.rollout import Group, Rollout


class GroupAssembly:
    """The groups of which a consumer has members and that it cannot deliver yet.

    A group is whole by its members: when all samples are here. The mark of a group's last member only says that no more will
    come; a rollout that Redis lost ends again, so the mark may stand on one that was delivered before.

    Args:
        members: where the members are kept, by group; shared with the consumer's warning.

    Attributes:
        samples: rollouts of each task.
    """

    def __init__(self, members: dict[str, list[Rollout]]) -> None:
        self.samples = 1
        self._members = members

    def add(self, rollout: Rollout) -> Group | None:
        """Add a rollout; return its group if that is whole now, or gets no more members."""
        members = self._members.setdefault(rollout.group, [])
        members.append(rollout)
        return self.take(rollout.group) if rollout.last or len(members) == self.samples else None

    def take(self, group: str) -> Group | None:
        """Take a group out, whole or not; None: it has no member here."""
        members = self._members.pop(group, None)
        if members is None:
            return None
        members.sort(key=lambda rollout: rollout.sample)
        return Group(group, members, complete=len(members) == self.samples)

    def take_any(self) -> Group | None:
        """Take any group out; None: there is none."""
        return self.take(next(iter(self._members), ""))
