"""A file of JSON lines, one finished rollout each, in the order in which they ended.

The file itself is the commit record: on start it is read for the rollouts that it holds, and a line torn by a death is
cut off. A second writer is refused. One on another host, where locks do not reach, is replaced: the file is written anew and
renamed, so what the old writer still writes goes to a file without a name.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from glob import escape
from pathlib import Path
from secrets import token_hex

import msgspec

from gymq.client.sink_loop import Ended, Sink, make_folder, sync_folder
from gymq.errors import DataError, GymqError, SinkBusy, UsageError
from gymq.wire.record import RolloutRecord, narrow
from gymq.wire.rollout import Rollout

#: Bytes of the token that tells a process's copy of a file from others'.
_TOKEN_SIZE = 6

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
        place = path.resolve()
        #: What may take the file's place.
        self._copy = place.with_name(f".{place.name}.{token_hex(_TOKEN_SIZE)}.new")
        self._end = 0
        self._durable = 0

    def open(self) -> None:
        """Open, lock and read the file; see `Sink`."""
        self.claim()
        try:
            with suppress(PermissionError):  # without it this process can write, and not take the file over
                self._copy.touch()
            self._read()
        except BaseException:
            self.close()
            raise

    def begin(self, taken_over: bool) -> None:
        """Cut off a torn line, and what a death while lines were dropped has left; see `Sink`."""
        place, new = self._places()
        try:
            for other in {new, *place.parent.glob(f".{escape(place.name)}.*.new")} - {self._copy}:
                other.unlink(missing_ok=True)
            if taken_over:
                self._renew(place)
            else:
                self._copy.unlink(missing_ok=True)
                if self._end < os.fstat(self._file).st_size:
                    os.ftruncate(self._file, self._end)
            self._durable = self._end
            os.fsync(self._file)
            sync_folder(place.parent)
        except FileNotFoundError:
            raise SinkBusy(f"{self.path}: another process is taking this file over; stop one of them") from None
        except OSError as error:
            raise GymqError(f"{self.path}: {error.strerror}; make room and run the same command again") from None

    def _renew(self, place: Path) -> None:
        """Put a copy in the file's place, and lock and read it: what a process on another host has open has no name then.

        Raises:
            FileNotFoundError: a process that became the consumer later has taken the copy away. It was made before this process
                became the consumer, and is not made again: so this one cannot put it in the place of the later one's.
        """
        with self._copy.open("r+b") as file:
            for line, _ in lines(place):
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(self._copy, stat.S_IMODE(os.fstat(self._file).st_mode))
        self._copy.replace(place)
        self.close()
        self.claim()
        self._read()

    def claim(self) -> None:
        """Open and lock the file; see `Sink`."""
        while self._file < 0:
            try:
                make_folder(self.path.parent)
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

    def _read(self) -> None:
        """Read the whole lines."""
        end, last, rollout = 0, b"", ""
        for line, rollout in lines(self.path):
            try:
                self.seen.add(rollout)
            except DataError as error:
                raise DataError(f"{self.path}: {error}; choose another --out") from None
            end += len(line)
            last = line
        if last:
            self.newest, self.newest_id = _commit_number.decode(last).seq, rollout
        self._end = end

    def write(self, rollouts: list[Rollout]) -> None:
        """Append the lines; see `Sink`."""
        data = memoryview(b"\n".join([*(rollout.json for rollout in rollouts), b""]))
        try:
            while data:
                done = os.write(self._file, data)
                self._end += done
                data = data[done:]
        except OSError as error:
            raise GymqError(f"{self.path}: {error.strerror}; make room and run the same command again") from None
        self.written += len(rollouts)

    def commit(self) -> None:
        """Wait until the disk has it; what it refuses is cut off, for the next process would read it from the page cache."""
        try:
            os.fdatasync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._durable)
            raise GymqError(f"{self.path}: the disk failed: {error.strerror}; run the same command again") from None
        self._durable = self._end

    def close(self) -> None:
        """Close the file; the lock goes with it."""
        self._copy.unlink(missing_ok=True)
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
