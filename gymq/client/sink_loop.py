"""The base class of sinks, and the loop that feeds one: read, write, make durable, acknowledge."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import ClassVar

import msgspec

from gymq.client.consumer import Results
from gymq.client.place import Place
from gymq.client.rollout_set import RolloutSet
from gymq.errors import OtherFile
from gymq.observe.events import RolloutsStored, emit
from gymq.settings import Settings
from gymq.wire.rollout import Rollout

#: Seconds between two times that written rollouts are made durable and acknowledged: an fsync costs milliseconds. Also
#: how long a sink waits for more before it counts as idle.
COMMIT_EVERY = 0.25

log = logging.getLogger(__name__)

#: Statuses of rollouts without a result.
RESULTLESS = frozenset({"failed", "cancelled"})


class Ended(msgspec.Struct, frozen=True):
    """A rollout that a place holds, without its conversation.

    Args:
        rollout_id: `run.row.sample`.
        environment: the task's environment.
        status: how it ended.
    """

    rollout_id: str
    environment: str
    status: str

    @property
    def failed(self) -> bool:
        """Whether the rollout gave no result: it failed, or was cancelled."""
        return self.status in RESULTLESS


class Sink:
    """Base of all sinks. The files are the record: on start a sink reads them, and never writes a rollout twice.

    Args:
        path: where it writes.
        run: the run whose rollouts it takes.

    Attributes:
        seen: the rollouts that are there.
        newest: the highest commit number among them, 0 if there are none.
        newest_id: the rollout that has it.
        written: rollouts written by this process.
        repeated: rollouts that came again and were there already.
        rolled_back: rollouts among them that Redis had confirmed and lost.
        missed: rollouts that were trimmed before this sink was declared: it will never see them.
        backlog: how many rollouts the run lets its consumers be behind; 0 before `open`.
    """

    name: ClassVar[str] = ""

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self.run = run
        self.seen = RolloutSet(run)
        self.newest = 0
        self.newest_id = ""
        self.written = 0
        self.repeated = 0
        self.rolled_back = 0
        self.missed = 0
        self.backlog = 0

    def open(self) -> None:
        """Lock the place and read it, set `seen`, `newest` and `newest_id`; nothing there is changed. May be called again.

        Raises:
            SinkBusy: another process writes there.
            DataError: the files are not this run's.
        """
        raise NotImplementedError(f"sink {type(self).__name__} defines no open()")

    def begin(self, taken_over: bool) -> None:
        """Mend a torn end, make the files durable, and get ready to write: this process alone is the consumer now.

        Args:
            taken_over: another host wrote here before; where locks do not reach it may write on, and from now on that must not
                get into the files. What it has written until now counts as read.
        """

    def claim(self) -> None:
        """Make the place, if it is not there, and lock it until `close`; `open` does this too.

        Raises:
            SinkBusy: another process writes there.
            GymqError: it cannot be written.
        """
        raise NotImplementedError(f"sink {type(self).__name__} defines no claim()")

    def ended(self) -> Iterator[Ended]:
        """Yield the rollouts that are there, in the order of the files; it needs neither `claim` nor `open`.

        Raises:
            DataError: something there is no rollout.
        """
        raise NotImplementedError(f"sink {type(self).__name__} defines no ended()")

    def records(self, fields: Collection[str] = ()) -> Iterator[bytes]:
        """Yield the records that are there, each as a JSON object; it needs neither `claim` nor `open`.

        Args:
            fields: the fields that are needed, others may be missing; empty: all.

        Raises:
            DataError: something there is no rollout.
        """
        raise NotImplementedError(f"sink {type(self).__name__} defines no records()")

    def drop(self, unwanted: Callable[[Ended], bool]) -> int:
        """Remove rollouts, between `claim` and `close`: at any moment each of the others is there once.

        Args:
            unwanted: says of a rollout whether it is to go.

        Returns:
            How many went.
        """
        raise NotImplementedError(f"sink {type(self).__name__} defines no drop()")

    def discard(self) -> bool:
        """Delete the place if no rollout is there; return whether none is."""
        raise NotImplementedError(f"sink {type(self).__name__} defines no discard()")

    def write(self, rollouts: list[Rollout]) -> None:
        """Write rollouts; none of them is there yet."""
        raise NotImplementedError(f"sink {type(self).__name__} defines no write(rollouts)")

    def due(self, age: float, idle: bool) -> bool:
        """Return whether the written rollouts are to be committed now; the run waits for a consumer that keeps too many back.

        Args:
            age: seconds since the oldest of it was written.
            idle: nothing more has come for a moment.
        """
        return idle or age >= COMMIT_EVERY

    def commit(self) -> None:
        """Make the written rollouts durable; only then are they acknowledged."""

    def close(self) -> None:
        """Finish; after `commit`."""


def sync_folder(folder: Path) -> None:
    """Make a file's new name durable: until then a power loss may bring back the old one."""
    entries = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entries)
    finally:
        os.close(entries)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; each name is durable."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


async def feed(sink: Sink, consumer: str, settings: Settings, stop: asyncio.Event) -> bool:
    """Feed a sink until its run is over.

    Args:
        sink: the sink.
        consumer: under which name it reads.
        settings: where Redis is.
        stop: set it to stop early; what was written is committed first.

    Returns:
        Whether the run is over: nothing more will come.

    Raises:
        GymqError: the sink cannot write, the run is unknown, or another process has become the consumer.
    """
    results = Results(sink.run, consumer, settings=settings)
    try:
        await _enter(sink, results)
        sink.missed = results.missed
        log.info("ready: run %s, %d rollouts are in %s", sink.run, len(sink.seen), sink.path)
        batch: list[Rollout] | None = await results.unacknowledged()
        pending: list[Rollout] = []
        since = 0.0
        while batch is not None and not stop.is_set():
            if batch:
                since = since if pending else time.monotonic()
                sink.write(batch)
                pending += batch
            if pending and sink.due(time.monotonic() - since, not batch):
                await _store(sink, results, pending)
                pending = []
            batch = await results.read(round(COMMIT_EVERY * 1000))
            sink.repeated, sink.rolled_back = results.repeated, results.rolled_back
        await _store(sink, results, pending)
        return batch is None
    finally:
        sink.close()
        await results.close()


async def _enter(sink: Sink, results: Results) -> None:
    """Become the consumer that writes to a sink's place, and ready to write there."""
    here, there = Place.here(sink.path), -1
    sink.backlog = await results.connect(here)
    while True:
        # Declared after this: a consumer that then cannot write would hold up the run for ever.
        sink.open()
        results.resume(sink.seen, sink.newest, sink.newest_id)
        try:
            before = await results.join(here)
            break
        except OtherFile:
            # It is the same file after all, if it has grown since: the process on the other host writes on.
            if len(sink.seen) == there:
                raise
            there = len(sink.seen)
    sink.begin(before is not None and before.host != here.host)


async def _store(sink: Sink, results: Results, rollouts: list[Rollout]) -> None:
    """Make rollouts durable, then acknowledge them."""
    began = time.monotonic()
    sink.commit()
    seconds = time.monotonic() - began
    await results.acknowledge(rollouts)
    if rollouts:
        emit(RolloutsStored(sink.run, len(rollouts), seconds))
