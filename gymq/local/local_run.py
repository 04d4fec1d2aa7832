"""A run on this machine as one object: what `gymq run` and `gymq.run` check, do and find out, whatever they show of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any

from gymq.aio import cancel_and_wait
from gymq.client.rollout_set import RolloutSet
from gymq.client.sink_loop import RESULTLESS, Ended
from gymq.errors import DataError
from gymq.local.launch import check_isolated
from gymq.local.model_probe import probe_models
from gymq.local.preflight import check_kept, preflight
from gymq.local.read_options import check_names
from gymq.local.run_budget import check_prices
from gymq.local.run_dir import RunDir
from gymq.local.run_guard import HOPELESS, Stop, stopped_by
from gymq.local.run_identity import run_name
from gymq.local.run_options import RunOptions
from gymq.local.run_session import RunSession
from gymq.ops import summary
from gymq.ops.summary import Report, Summary
from gymq.settings import Settings
from gymq.store.sharded import reach
from gymq.wire.ids import RolloutId

#: Exit codes of a run that came to its end: some rows were bad; rollouts failed; rollouts lack the reward of their verifier.
BAD_ROWS, FAILED, UNREWARDED = 3, 6, 8


class LocalRun:
    """A run on this machine: its rows are looked at when it is made, and nothing is started.

    Args:
        environment: the environment of rows that name none.
        options: the options; `out` is among them.
        say: told of each bad row, and of what is there, in one line for a person.
        word: returns a line of the progress in the caller's words, where those are not the command line's.

    Attributes:
        config: the run.
        folder: its file, and the folder beside it.
        bad: the number of rows that were refused.
        report: the summary of its file, once `go` has come to the run's end.

    Raises:
        UsageError, UnknownName: an option makes no sense, or the file is another run's.
        DataError: the data cannot be read, or has no good row.
    """

    def __init__(
        self, environment: str, options: RunOptions, say: Callable[[str], None], word: Callable[[str], str] = str
    ) -> None:
        self._began = time.time()
        check_names(environment, options)
        check_prices(options, options.price_table)
        assert options.out is not None
        self._options = options
        self._say = say
        self._word = word
        self._identity = options.identity(environment)
        self.config = options.config(environment, run_name(self._identity))
        self.folder = RunDir(Path(options.out))
        self._rows = preflight(options.data, environment, options.limit, options.prompt, on_bad=say)
        self.bad = self._rows.bad
        if not self._rows.rows:
            raise DataError(f"{options.data}: has no good rows; nothing to roll out")
        check_isolated(self._rows.specs())
        self.report = Report(Summary(), {}, set(), {})
        self._session: RunSession | None = None
        self._stop: Future[int] = Future()

    @property
    def total(self) -> int:
        """Rollouts that the file will hold."""
        return self._rows.rows * self.config.samples if self._session is None else self._session.total

    def kept(self, wanted_only: bool = False) -> RolloutSet:
        """Return the rollouts that the file holds, and that are not to be done again.

        Args:
            wanted_only: leave out those of rows beyond the limit, too.

        Raises:
            UsageError: the file is another run's.
        """
        kept = RolloutSet(self.config.name)
        for row, sample, environment in self.folder.kept(self.config.name, self._identity, self._gone):
            check_kept(self._rows.environments, row, environment)
            if sample < self.config.samples and (not wanted_only or row < self._rows.rows):
                kept.add(str(RolloutId(self.config.name, row, sample)))
        return kept

    def _gone(self, ended: Ended) -> bool:
        """Return whether a rollout is to leave the file: it failed, and this command does it again, or it is another run's."""
        place = RolloutId.check(ended.rollout_id)
        if place is None or not self._options.retry_failed or not ended.failed:
            return False
        wanted = place.row < self._rows.rows and place.sample < self.config.samples
        return wanted or place.run != self.config.name

    def go(self) -> Stop | None:
        """Do what the file lacks, until all is there, or `stop` is called; on the main thread a signal calls it.

        Returns:
            Why the run was stopped; None: it came to its end.

        Raises:
            GymqError: the run cannot go on.
        """
        out = self.folder.out
        if len(self.kept(wanted_only=True)) == self.total:
            self._say(f"{out}: complete: all {self.total} rollouts are there; nothing to do")
            self.report = summary.read(out)
            return None
        asyncio.run(self._probe())
        with self.folder.locked():
            kept = self.kept()  # again: another process may have written until now
            if self._options.retry_failed and (failed := self.folder.drop(self._gone)):
                self._say(f"{out}: {failed} rollouts had failed or were cancelled; they are done again")
            if kept:
                self._say(f"{out}: {len(kept)} rollouts are there; the others are to do")
            self.folder.enter(self.config.name, self._identity)
            source = self._identity["data"]
            session = RunSession(self._options, self.config, source, self._rows, kept, self.folder, self._stop, self._word)
            if self._stop.done():
                return stopped_by(self._stop.result())
            self._session = session
            stopped = session.go()
            if stopped is None:
                self.report = summary.read(out, self._began)
                self.folder.leave(keep_logs=session.troubled or self.code in (FAILED, UNREWARDED))
            return stopped

    def stop(self, number: int) -> None:
        """Stop in order; any thread may call it.

        Args:
            number: the signal for which it stops.
        """
        with suppress(InvalidStateError):  # it stops already
            self._stop.set_result(number)

    def kill(self) -> None:
        """End all processes at once; any thread may call it, and `stop` comes first."""
        if self._session is not None:
            self._session.kill()

    @property
    def code(self) -> int:
        """The exit code of a run that came to its end."""
        total = self.report.total
        if self.bad:
            return BAD_ROWS
        return FAILED if _failed(total) or self._missing > 0 else UNREWARDED if total.unrewarded else 0

    def complaints(self) -> list[str]:
        """Return a line for each thing that went wrong in a run that came to its end."""
        total, lines = self.report.total, list[str]()
        if self.bad:
            lines.append(f"{self.bad} rows were bad; they are listed above")
        if failed := _failed(total):
            first = f"; the first to fail says: {total.first_error}" if total.first_error else ""
            lines.append(f"{failed} rollouts failed or were cancelled; their `error` in {self.folder.out} says why{first}")
            lines.append("the same command with --retry-failed does them again")
        if unrewarded := total.unrewarded.total():
            first = f"; the first says: {total.first_unrewarded}"
            lines.append(f"{unrewarded} rollouts have no reward, though their environment has a verifier{first}")
        if self._missing > 0:
            lines.append(f"the run was cancelled before {self._missing} of its rollouts had begun; the same command does them")
        return lines

    @property
    def _missing(self) -> int:
        return self.total - self.report.total.rollouts

    def told(self, stop: Stop) -> list[str]:
        """Return the lines that say what a stopped run has kept, and what to do.

        Args:
            stop: why it was stopped.
        """
        kept = sum(1 for _ in self.folder.kept(self.config.name))
        there = f"{kept} of {self.total} rollouts are in {self.folder.out}"
        if stop.code != HOPELESS:
            return [f"{there}; the same command continues"]
        return [
            there,
            f"gymq: stopped, because all fail alike: {self.folder.last_failure()}",
            "gymq: once that is mended, the same command with --retry-failed does them all",
        ]

    async def _probe(self) -> None:
        """Wait until the models answer, unless the run is stopped before; a server of one's own that is away is told first."""
        if self._options.redis:
            await reach(Settings.from_environment(redis_url=self._options.redis))
        probe = asyncio.create_task(probe_models(self._options, self._say))
        either: list[asyncio.Future[Any]] = [probe, asyncio.wrap_future(self._stop)]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if probe.done():
            probe.result()
        await cancel_and_wait([probe])


def _failed(total: Summary) -> int:
    """Return the number of rollouts that failed or were cancelled."""
    return sum(total.by_status[status] for status in RESULTLESS)
