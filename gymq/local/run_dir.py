"""The files of a `gymq run`: OUT, which holds the finished rollouts, and beside it the folder OUT.gymq.

server/   the embedded server's data, as long as the run is not finished
logs/     the other processes' output; deleted when all went well
run.json  the run's name and identity
run.lock  locked while a `gymq run` works here
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from gymq.errors import GymqError, SinkBusy, UsageError
from gymq.wire.record import RolloutRecord, narrow

#: Beginning of each line of OUT: run, row, sample, run, environment.
_HEAD = re.compile(rb'\{"rollout_id":"([^".]*)\.(\d+)\.(\d+)","run":"[^"]*","environment":"((?:[^"\\]|\\.)*)"')

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
        if not out.name or os.path.isdir(out):
            raise UsageError(f"{out}: is a folder; name a file in it")
        if os.path.exists(out) and not os.path.isfile(out):
            raise UsageError(f"{out}: is no plain file, and finished rollouts are read from it; choose another --out")
        self.out = out
        self.folder = out.with_name(out.name + ".gymq")
        self.server = self.folder / "server"
        self.logs = self.folder / "logs"
        self._record = self.folder / "run.json"
        self._lock = self.folder / "run.lock"

    def kept(self, run: str) -> Iterator[tuple[int, int, str]]:
        """Yield row, sample and environment of each finished rollout in OUT.

        Args:
            run: the name of the run that they must belong to.

        Raises:
            UsageError: OUT holds something else, or cannot be read.
        """
        try:
            with self.out.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        return  # torn by a death; the sink cuts it off
                    head = _HEAD.match(line)
                    if head is None:
                        raise UsageError(f"{self.out}:{number}: is no rollout of gymq; choose another --out")
                    if head[1] != run.encode():
                        other = head[1].decode(errors="replace")
                        raise UsageError(
                            f"{self.out}: holds rollouts of another run, {other!r}: its data or options were others than this "
                            f"command's ({run!r}); choose another --out"
                        )
                    yield int(head[2]), int(head[3]), msgspec.json.decode(b'"' + head[4] + b'"')
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{self.out}: {error.strerror}; choose another --out") from None

    def last_failure(self) -> str:
        """Return the error of the rollout in OUT that failed last, empty if none did."""
        error = ""
        with suppress(OSError), self.out.open("rb") as file:
            for line in file:
                with suppress(msgspec.DecodeError):  # torn
                    fault = _fault_of.decode(line).error
                    error = fault.message if fault is not None else error
        return error

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Lock OUT and the folder; afterwards delete the folder if it holds neither data nor logs, and OUT if it is empty then.

        Raises:
            SinkBusy: another process works here, or writes OUT.
            GymqError: OUT or the folder cannot be written.
        """
        lock = self._take()
        try:
            self._try_out()
            yield
        finally:
            if not self.server.exists() and not self.logs.exists():
                self.leave(keep_logs=True)
                with suppress(OSError):
                    if not self.out.stat().st_size:
                        self.out.unlink()
            os.close(lock)

    def enter(self, run: str, identity: dict[str, Any]) -> None:
        """Write the run's name and identity down; delete data and logs of another run.

        Args:
            run: the run's name.
            identity: the values that define it, for people.
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
        for file in (self._record, self._lock):
            file.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _take(self) -> int:
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise GymqError(f"{self.folder}: cannot be written: {error.strerror}; choose another --out") from None
            try:
                _wait(lock, f"{self.out}: another `gymq run` works on it; stop it or choose another --out")
                # The process that held it may have finished and deleted the file: then this lock excludes no other process.
                if self._lock.exists() and os.path.samestat(os.fstat(lock), self._lock.stat()):
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def _try_out(self) -> None:
        """Check that OUT can be written, and that no other process writes it."""
        try:
            out = os.open(self.out, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise GymqError(f"{self.out}: cannot be written: {error.strerror}; choose another --out") from None
        try:
            _wait(out, f"{self.out}: another process writes this file; stop it or choose another --out")
        finally:
            os.close(out)


def _wait(file: int, refusal: str) -> None:
    until = time.monotonic() + LOCK_LIMIT
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                raise SinkBusy(refusal) from None
            time.sleep(_RETRY_INTERVAL)
