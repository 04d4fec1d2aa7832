"""A supervisor of named child processes: starts them in order, restarts the dead, and stops them in reverse order.

It has no threads and waits only in `stop`: the caller calls `poll` a few times a second.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import msgspec

from gymq.backoff import backoff
from gymq.errors import GymqError, one_line
from gymq.process.child_process import ChildProcess, describe

#: Seconds after its start in which a child's death is quick: a sign that the child cannot work at all.
QUICK = 10.0

#: Quick deaths in a row after which a child is given up. With the back-off below they take at least 7.5 s: enough for a
#: restarted server to be back.
QUICK_DEATHS = 5

#: Seconds before a dead child is started again; doubled with each quick death in a row.
BACKOFF = 0.5

#: Last lines of a child's log in an error: enough for an exception and where it came from.
TAIL_LINES = 5

#: Characters of one of those lines.
TAIL_WIDTH = 200


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A child's program and treatment.

    Args:
        name: its name in messages, unique.
        argv: the program and its arguments.
        log: the file of its output; None: it goes where this process's goes.
        env: variables to set, beside those of this process that hold no secret.
        secrets: the variables of this process that it gets although they hold secrets.
        tier: lower tiers are started first and stopped last.
        grace: seconds that it may take to stop.
        finishes: True: it ends by itself, and exit code 0 is its good end.
        fatal: exit codes after which a restart is of no use.
    """

    name: str
    argv: tuple[str, ...]
    log: Path | None
    env: dict[str, str] = {}
    secrets: frozenset[str] = frozenset()
    tier: int = 0
    grace: float = 10.0
    finishes: bool = False
    fatal: frozenset[int] = frozenset()


class _ChildSlot:
    """A child's slot: its present process, or the time of its restart."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.child: ChildProcess | None = None
        self.started = 0.0
        self.due = 0.0
        self.quick_deaths = 0

    def start(self) -> None:
        self.child = ChildProcess(self.spec.argv, self.spec.env, self.spec.name, self.spec.log, secrets=self.spec.secrets)
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
        self._slots = [_ChildSlot(spec) for spec in sorted(specs, key=lambda spec: spec.tier)]
        names = [slot.spec.name for slot in self._slots]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise GymqError(f"two children have the name {twice[0]!r}; give each its own")

    @property
    def children(self) -> dict[str, ChildProcess]:
        """The processes by name; a child that waits for its restart, or has finished, has none."""
        return {slot.spec.name: slot.child for slot in self._slots if slot.child is not None}

    def start(self) -> None:
        """Start all children, lower tiers first; if one fails to start, stop the others.

        Raises:
            GymqError: a program does not exist.
        """
        try:
            for slot in self._slots:
                slot.start()
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
        for slot in self._slots:
            name, now = slot.spec.name, time.monotonic()
            if name in self.finished:
                continue
            if slot.child is None:
                if now >= slot.due:
                    slot.start()
                    events.append(f"{name}: started again")
            elif not slot.child.alive:
                events.append(self._ended(slot, slot.child, now))
                slot.child = None
        return events

    def forgive(self) -> None:
        """Forget the quick deaths so far, since the children have proved that they work."""
        for slot in self._slots:
            slot.quick_deaths = 0

    def stop(self) -> None:
        """Stop all children, higher tiers first, those of a tier at the same time; an exception meanwhile kills all.

        So a second Ctrl-C ends everything at once.
        """
        try:
            for _, tier in groupby(reversed(self._slots), key=lambda slot: slot.spec.tier):
                self._stop_tier([(slot.child, slot.spec.grace) for slot in tier if slot.child is not None])
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill all children and their groups at once."""
        for slot in reversed(self._slots):
            if slot.child is not None:
                slot.child.kill()

    @staticmethod
    def _stop_tier(tier: list[tuple[ChildProcess, float]]) -> None:
        for child, _ in tier:
            child.request_stop()
        requested = time.monotonic()
        for child, grace in sorted(tier, key=lambda item: item[1]):
            if not child.wait(requested + grace - time.monotonic()):
                child.kill()

    def _ended(self, slot: _ChildSlot, child: ChildProcess, now: float) -> str:
        """Note a child's end, or schedule its restart, or give up; return a line for a person."""
        spec, how, lived = slot.spec, describe(child.code), now - slot.started
        if spec.finishes and child.code == 0:
            self.finished.add(spec.name)
            return f"{spec.name}: finished"
        if child.code in spec.fatal:
            error = GymqError(f"{spec.name} cannot go on: {_reason(child) or how}")
            error.exit_code = child.code
            raise error
        slot.quick_deaths = slot.quick_deaths + 1 if lived < QUICK else 0
        if slot.quick_deaths >= QUICK_DEATHS:
            times = f"{QUICK_DEATHS} times in a row within {QUICK:g} s of its start"
            raise GymqError(f"{spec.name} died {times}, the last time: {how}; {_last_lines(child)}")
        delay = backoff(slot.quick_deaths, BACKOFF, QUICK)
        slot.due = now + delay
        said = _reason(child)
        why = f" ({child.log} ends with: {one_line(said)})" if said else ""
        return f"{spec.name}: {how} after {lived:.1f} s{why}; starting it again in {delay:g} s"


def _reason(child: ChildProcess) -> str:
    """Return the line with which a command of gymq's ended, as it stands last in the log, without its beginning."""
    return re.sub(r"^(gymq|\S+ CRITICAL \S+): ", "", "".join(child.tail(1)).strip())


def _last_lines(child: ChildProcess) -> str:
    """Return the end of a child's log as one line."""
    lines = [line.strip()[:TAIL_WIDTH] for line in child.tail(TAIL_LINES) if line.strip()]
    if child.log is None:
        return "what it printed says why"
    return f"{child.log} ends with: {' | '.join(lines)}" if lines else f"{child.log} is empty"
