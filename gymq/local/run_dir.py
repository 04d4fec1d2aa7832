"""The files of a `gymq run`: OUT, which holds the finished rollouts, and beside it the folder OUT.gymq.

server/   the embedded server's data, as long as the run is not finished
logs/     the other processes' output; deleted when all went well
run.json  the run's name and identity; stays, so that another run that is given OUT can be told what it differs in
run.lock  locked while a `gymq run` works here
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gymq.client.output import output_kind, output_sink
from gymq.client.sink_loop import Ended
from gymq.errors import DataError, GymqError, SinkBusy, UsageError
from gymq.local.run_identity import differences
from gymq.wire.ids import RolloutId
from gymq.wire.record import RolloutRecord, narrow

#: Seconds to wait for OUT: the sink of a `gymq run` that was just killed takes a moment to end.
LOCK_LIMIT = 3.0

#: Seconds between two tries to lock a file.
_RETRY_INTERVAL = 0.05


_fault_of = msgspec.json.Decoder(narrow(RolloutRecord, "error"))


class RunDir:
    """The files of one run.

    Args:
        out: the file of finished rollouts.

    Raises:
        UsageError: `out` is something else than a file.
    """

    def __init__(self, out: Path) -> None:
        parts = output_kind(out) == "parquet"
        if not out.name or (os.path.isdir(out) and not parts):
            raise UsageError(f"{out}: is a folder; name a file in it")
        if os.path.exists(out) and not (os.path.isdir(out) if parts else os.path.isfile(out)):
            kind = "folder of Parquet parts" if parts else "plain file"
            raise UsageError(f"{out}: is no {kind}, and finished rollouts are read from it; choose another --out")
        self.out = out
        self.folder = out.with_name(out.name + ".gymq")
        self.server = self.folder / "server"
        self.logs = self.folder / "logs"
        self._record = self.folder / "run.json"
        self._lock = self.folder / "run.lock"

    def kept(
        self, run: str, identity: dict[str, Any] | None = None, gone: Callable[[Ended], bool] = lambda _: False
    ) -> Iterator[tuple[int, int, str]]:
        """Yield row, sample and environment of each finished rollout in OUT.

        Args:
            run: the name of the run that they must belong to.
            identity: what defines that run, for the error about another run's.
            gone: says of a rollout whether it is to leave OUT, and so does not count, whosever it is.

        Raises:
            UsageError: OUT holds something else, or cannot be read.
        """
        try:
            for ended in output_sink(self.out).ended():
                if gone(ended):
                    continue
                place = RolloutId.check(ended.rollout_id)
                if place is None:
                    raise UsageError(f"{self.out}: {ended.rollout_id[:100]!r} is no rollout of gymq; choose another --out")
                if place.run != run:
                    raise UsageError(self._of_another(place.run, identity or {}, ended.environment))
                yield place.row, place.sample, ended.environment
        except DataError as error:
            raise UsageError(str(error)) from None

    def drop(self, gone: Callable[[Ended], bool]) -> int:
        """Remove rollouts from OUT, while the folder is locked; return how many went."""
        sink = output_sink(self.out)
        _insist(sink.claim)
        try:
            return sink.drop(gone)
        finally:
            sink.close()

    def last_failure(self) -> str:
        """Return the error of the rollout in OUT that failed last, empty if none did."""
        error = ""
        for record in output_sink(self.out).records(("error",)):
            fault = _fault_of.decode(record).error
            error = fault.message if fault is not None else error
        return error

    def _of_another(self, run: str, identity: dict[str, Any], environment: str) -> str:
        """Return the error about an OUT of another run."""
        was: dict[str, Any] = {"environment": environment}
        with suppress(OSError, ValueError, KeyError):
            record = msgspec.json.decode(self._record.read_bytes())
            was = record if record["run"] == run else was
        found = differences(was, identity)
        what = f" ({'; '.join(found)})" if found else f" ({run!r}), whose options are not known"
        return f"{self.out}: holds rollouts of another run{what}; give the same options, or choose another --out"

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Lock OUT and the folder; afterwards delete OUT if it is empty, and of the folder what serves nothing more.

        Raises:
            SinkBusy: another process works here, or writes OUT.
            GymqError: OUT or the folder cannot be written.
        """
        lock = self._take()
        try:
            sink = output_sink(self.out)
            _insist(sink.claim)
            sink.close()
            yield
        finally:
            if not self.server.exists() and not self.logs.exists():
                self.leave(keep_logs=True)
            os.close(lock)

    def enter(self, run: str, identity: dict[str, Any]) -> None:
        """Write the run's name and identity down; delete data and logs of another run.

        Args:
            run: the run's name.
            identity: the values that define it.
        """
        with suppress(OSError, ValueError, KeyError):
            if msgspec.json.decode(self._record.read_bytes())["run"] != run:
                shutil.rmtree(self.server, ignore_errors=True)
                shutil.rmtree(self.logs, ignore_errors=True)
        text = msgspec.json.format(msgspec.json.encode({"run": run, **identity}), indent=2)
        new = self._record.with_suffix(".new")
        new.write_bytes(text + b"\n")
        new.replace(self._record)

    def leave(self, keep_logs: bool) -> None:
        """Delete the files that a finished run needs no more, and the folder if it is empty then.

        Args:
            keep_logs: whether the logs stay.
        """
        shutil.rmtree(self.server, ignore_errors=True)
        if not keep_logs:
            shutil.rmtree(self.logs, ignore_errors=True)
        if output_sink(self.out).discard():
            self._record.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _flock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SinkBusy(f"{self.out}: another `gymq run` works on it; stop it or choose another --out") from None

    def _take(self) -> int:
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise GymqError(f"{self.folder}: cannot be written: {error.strerror}; choose another --out") from None
            try:
                _insist(partial(self._flock, lock))
                # The process that held it may have finished and deleted the file: then this lock excludes no other process.
                if self._lock.exists() and os.path.samestat(os.fstat(lock), self._lock.stat()):
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def _insist(take: Callable[[], None]) -> None:
    """Take a lock that another process may hold for a moment yet."""
    until = time.monotonic() + LOCK_LIMIT
    while True:
        try:
            return take()
        except SinkBusy:
            if time.monotonic() >= until:
                raise
            time.sleep(_RETRY_INTERVAL)
