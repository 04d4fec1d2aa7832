"""Named child processes that are started in order, started again when they die, and stopped in reverse order.

It has no threads and never waits but in `stop`: the caller calls `poll` a few times a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import msgspec

from gymq.errors import GymqError
from gymq.process.child_process import ChildProcess, describe

#: Seconds after its start in which a death is quick: it says that the child cannot work, not that something happened to it.
QUICK = 10.0

#: Quick deaths in a row after which a child is given up. With the back-off below they take at least 7.5 s, in which a
#: server that was just started again is back.
QUICK_DEATHS = 5

#: Seconds before a dead child is started again; doubled with each quick death in a row.
BACKOFF = 0.5

#: Last lines of a child's log in an error: enough for an exception and where it came from.
TAIL_LINES = 5

#: Characters of one of those lines.
TAIL_WIDTH = 200


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run and how to treat it.

    Args:
        name: its name in messages, unique.
        argv: the program and its arguments.
        log: the file that gets its output; None: it goes where this process's goes.
        env: variables to set, beside those of this process.
        tier: lower tiers are started first and stopped last.
        grace: seconds that it may take to stop.
        finishes: it ends by itself, and exit code 0 is its good end.
        fatal: exit codes after which starting it again is of no use.
    """

    name: str
    argv: tuple[str, ...]
    log: Path | None
    env: dict[str, str] = {}
    tier: int = 0
    grace: float = 10.0
    finishes: bool = False
    fatal: frozenset[int] = frozenset()


class _ChildSlot:
    """A child's place: the process that fills it now, or when to fill it again."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.child: ChildProcess | None = None
        self.started = 0.0
        self.due = 0.0
        self.quick_deaths = 0

    def start(self) -> None:
        self.child = ChildProcess(self.spec.argv, self.spec.env, self.spec.name, self.spec.log)
        self.started = time.monotonic()


class Supervisor:
    """Keeps children running.

    Args:
        specs: the children; within a tier they are started in the given order.

    Raises:
        GymqError: two children have the same name.
    """

    def __init__(self, specs: Iterable[ChildSpec]) -> None:
        #: The names of the children that had their good end.
        self.finished: set[str] = set()
        self._places = [_ChildSlot(spec) for spec in sorted(specs, key=lambda spec: spec.tier)]
        names = [place.spec.name for place in self._places]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise GymqError(f"two children have the name {twice[0]!r}; give each its own")

    @property
    def children(self) -> dict[str, ChildProcess]:
        """The processes by name; a child that waits to be started again, or finished, has none."""
        return {place.spec.name: place.child for place in self._places if place.child is not None}

    def start(self) -> None:
        """Start all children, lower tiers first; if one cannot be started, the others are stopped.

        Raises:
            GymqError: a program does not exist.
        """
        try:
            for place in self._places:
                place.start()
        except BaseException:
            self.stop()
            raise

    def poll(self) -> list[str]:
        """Look after all children: note who finished, start again who died.

        Returns:
            A line for a person on each thing that happened since the last call.

        Raises:
            GymqError: a child was given up; the caller stops the others. After a fatal exit code it carries that code.
        """
        events: list[str] = []
        for place in self._places:
            name, now = place.spec.name, time.monotonic()
            if name in self.finished:
                continue
            if place.child is None:
                if now >= place.due:
                    place.start()
                    events.append(f"{name}: started again")
            elif not place.child.alive:
                events.append(self._ended(place, place.child, now))
                place.child = None
        return events

    def forgive(self) -> None:
        """Forget the quick deaths so far: the children do their work, whatever happens to them."""
        for place in self._places:
            place.quick_deaths = 0

    def stop(self) -> None:
        """Stop all children, higher tiers first, those of a tier at the same time; an exception meanwhile kills all.

        So a second Ctrl-C ends everything at once.
        """
        try:
            for _, tier in groupby(reversed(self._places), key=lambda place: place.spec.tier):
                self._stop_tier([(place.child, place.spec.grace) for place in tier if place.child is not None])
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End all children and their groups at once."""
        for place in reversed(self._places):
            if place.child is not None:
                place.child.kill()

    @staticmethod
    def _stop_tier(tier: list[tuple[ChildProcess, float]]) -> None:
        for child, _ in tier:
            child.ask()
        asked = time.monotonic()
        for child, grace in sorted(tier, key=lambda item: item[1]):
            if not child.wait(asked + grace - time.monotonic()):
                child.kill()

    def _ended(self, place: _ChildSlot, child: ChildProcess, now: float) -> str:
        """Decide what follows from a child's end: nothing, another start, or giving up."""
        spec, how, lived = place.spec, describe(child.code), now - place.started
        if spec.finishes and child.code == 0:
            self.finished.add(spec.name)
            return f"{spec.name}: finished"
        if child.code in spec.fatal:
            error = GymqError(f"{spec.name} cannot go on: {how}; {_last_lines(child)}")
            error.exit_code = child.code
            raise error
        place.quick_deaths = place.quick_deaths + 1 if lived < QUICK else 0
        if place.quick_deaths >= QUICK_DEATHS:
            times = f"{QUICK_DEATHS} times in a row within {QUICK:g} s of its start"
            raise GymqError(f"{spec.name} died {times}, the last time: {how}; {_last_lines(child)}")
        delay = BACKOFF * 2 ** max(place.quick_deaths - 1, 0)
        place.due = now + delay
        return f"{spec.name}: {how} after {lived:.1f} s; starting it again in {delay:g} s"


def _last_lines(child: ChildProcess) -> str:
    """The end of a child's log on one line."""
    lines = [line.strip()[:TAIL_WIDTH] for line in child.tail(TAIL_LINES) if line.strip()]
    if child.log is None:
        return "what it printed says why"
    return f"{child.log} ends with: {' | '.join(lines)}" if lines else f"{child.log} is empty"
