"""Where a `gymq run` keeps things: the file of finished rollouts, OUT, and beside it the folder OUT.gymq.

server/   the embedded server's data, as long as the run is not finished
logs/     what the other processes say; deleted when all went well
run.json  which run this is
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

#: How each line of OUT begins: run, row, sample, run, environment.
_HEAD = re.compile(rb'\{"rollout_id":"([^".]*)\.(\d+)\.(\d+)","run":"[^"]*","environment":"((?:[^"\\]|\\.)*)"')

#: Seconds to wait for OUT: the sink of a `gymq run` that was just killed takes a moment to end.
LOCK_LIMIT = 3.0

#: Seconds between two tries.
_TICK = 0.05


class RunDir:
    """The place of one run.

    Args:
        out: the file of finished rollouts.

    Raises:
        UsageError: that is something else than a file.
    """

    def __init__(self, out: Path) -> None:
        if not out.name or os.path.isdir(out):
            raise UsageError(f"{out}: is a folder; name a file in it")
        if os.path.exists(out) and not os.path.isfile(out):
            raise UsageError(f"{out}: is no plain file, and what is finished is read from it; choose another --out")
        self.out = out
        self.folder = out.with_name(out.name + ".gymq")
        self.server = self.folder / "server"
        self.logs = self.folder / "logs"
        self._record = self.folder / "run.json"
        self._lock = self.folder / "run.lock"

    def kept(self, run: str) -> Iterator[tuple[int, int, str]]:
        """What OUT holds: row, sample and environment of each finished rollout.

        Args:
            run: the run whose rollouts they must be.

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
                        there = head[1].decode(errors="replace")
                        raise UsageError(
                            f"{self.out}: holds rollouts of another run, {there!r}: its data or options were others than this "
                            f"command's ({run!r}); choose another --out"
                        )
                    yield int(head[2]), int(head[3]), msgspec.json.decode(b'"' + head[4] + b'"')
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{self.out}: {error.strerror}; choose another --out") from None

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Work here alone; the folder goes afterwards if it holds nothing of worth, and OUT if it is empty then.

        Raises:
            SinkBusy: another process works here, or writes OUT.
            GymqError: the place cannot be written.
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
        """Note which run this is; what is left of another one is deleted.

        Args:
            run: the run's name.
            identity: what defines it, for people.
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
        """Delete what a finished run needs no more, and the folder if nothing is left in it.

        Args:
            keep_logs: False: they go too.
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
                # Who held it before may have finished and deleted the file: then this is nobody's lock.
                if self._lock.exists() and os.path.samestat(os.fstat(lock), self._lock.stat()):
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def _try_out(self) -> None:
        """See that OUT can be written and nobody writes it."""
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
            time.sleep(_TICK)
