"""A file of JSON lines, one finished rollout each, in the order in which they ended.

The file itself is the commit record: on start it is read for the rollouts that it holds, and a line torn by a death is
cut off. A second writer is refused.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from gymq.client.sink_loop import Ended, Sink, sync_folder
from gymq.errors import DataError, GymqError, SinkBusy, UsageError
from gymq.wire.record import RolloutRecord, narrow
from gymq.wire.rollout import Rollout

#: How each line begins: the record's first field.
_HEAD = b'{"rollout_id":"'

#: The beginning of a line up to the status: strings in it are JSON's, so a quote within one has a backslash before it.
_BEGINNING = re.compile(
    rb'\{"rollout_id":"([^"\\]*)","run":"[^"]*","environment":"((?:[^"\\]|\\.)*)",(?:"[a-z_]+":(?:"(?:[^"\\]|\\.)*"|\d+),)*?"status":"([a-z]+)"'
)


class JsonlSink(Sink):
    """Appends to a file; see `Sink`."""

    name = "jsonl"

    def __init__(self, path: Path, run: str) -> None:
        super().__init__(path, run)
        self._file = -1

    def open(self) -> None:
        """Open, lock, mend and read the file; see `Sink`."""
        self.claim()
        try:
            self._mend()
        except BaseException:
            self.close()
            raise

    def claim(self) -> None:
        """Open and lock the file; see `Sink`."""
        while self._file < 0:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            except OSError as error:
                raise GymqError(f"{self.path}: cannot be written: {error.strerror}; choose another --out") from None
            try:
                self._lock()
            except BaseException:
                self.close()
                raise

    def _lock(self) -> None:
        """Lock the file; close it if another has taken its place meanwhile, as `drop` does."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise UsageError(f"{self.path}: is no plain file, and what is finished is read from it; choose another --out")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SinkBusy(f"{self.path}: another process writes this file; stop it or choose another --out") from None
        if not self.path.exists() or not os.path.samestat(os.fstat(self._file), self.path.stat()):
            self.close()

    def ended(self) -> Iterator[Ended]:
        """Yield what the lines' beginnings say; see `Sink`."""
        for ended, _ in self._lines():
            yield ended

    def _lines(self) -> Iterator[tuple[Ended, bytes]]:
        for number, line in enumerate(self.records(), 1):
            head = _BEGINNING.match(line)
            if head is None:
                raise DataError(f"{self.path}:{number}: is no rollout of gymq; choose another --out")
            rollout, environment, status = (msgspec.json.decode(b'"' + part + b'"', type=str) for part in head.groups())
            yield Ended(rollout, environment, status), line

    def records(self, fields: Collection[str] = ()) -> Iterator[bytes]:
        """Yield the whole lines; see `Sink`."""
        try:
            with self.path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        return  # being written, or torn: the process that wrote it died
                    yield line
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}; name a file of finished rollouts") from None

    def drop(self, unwanted: Callable[[Ended], bool]) -> int:
        """Write the other lines to a new file, which then takes the place of this one; see `Sink`."""
        gone = 0
        place, new = self._places()
        try:
            with new.open("wb") as file:
                for ended, line in self._lines():
                    if unwanted(ended):
                        gone += 1
                    else:
                        file.write(line)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(new, stat.S_IMODE(os.fstat(self._file).st_mode))
            if gone:
                new.replace(place)
                sync_folder(place.parent)
        except OSError as error:
            raise GymqError(f"{self.path}: {error.strerror}; make room and run the same command again") from None
        finally:
            new.unlink(missing_ok=True)
        return gone

    def _places(self) -> tuple[Path, Path]:
        """Return the file, behind all links, and the one beside it that may take its place."""
        place = self.path.resolve()
        return place, place.with_name(f".{place.name}.new")

    def discard(self) -> bool:
        """Delete an empty file; see `Sink`."""
        try:
            if self.path.stat().st_size:
                return False
            self.path.unlink()
        except FileNotFoundError:
            pass
        return True

    def _mend(self) -> None:
        """Read the file, and cut off a torn line and what a death while lines were dropped has left."""
        self._places()[1].unlink(missing_ok=True)
        end, last = 0, b""
        for line, rollout in lines(self.path):
            try:
                self.seen.add(rollout)
            except DataError as error:
                raise DataError(f"{self.path}: {error}; choose another --out") from None
            end += len(line)
            last = line
        if last:
            self.newest = _commit_number.decode(last).seq
        if end < os.fstat(self._file).st_size:
            os.ftruncate(self._file, end)
        os.fdatasync(self._file)

    def write(self, rollouts: list[Rollout]) -> None:
        """Append the lines; see `Sink`."""
        data = memoryview(b"\n".join([*(rollout.json for rollout in rollouts), b""]))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise GymqError(f"{self.path}: {error.strerror}; make room and run the same command again") from None
        self.written += len(rollouts)

    def commit(self) -> None:
        """Wait until the disk has it."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file; the lock goes with it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


_commit_number = msgspec.json.Decoder(narrow(RolloutRecord, "seq"))


def lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Yield the whole lines of a file, each with its rollout's id.

    Raises:
        DataError: a whole line is no rollout of gymq.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # torn: the process that wrote it died
            stop = line.find(b'"', len(_HEAD))
            if not line.startswith(_HEAD) or stop < 0:
                raise DataError(f"{path}:{number}: is no rollout of gymq; choose another --out")
            yield line, line[len(_HEAD) : stop].decode(errors="replace")
