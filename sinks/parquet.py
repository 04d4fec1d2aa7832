"""A folder of Parquet files, called parts, each of some thousand finished rollouts.

The parts themselves are the commit record: a part comes into being whole, by a rename, and what it holds is read from its
id column on start. The folder has

    part-<first entry>_<last entry>.parquet    named after the first and last entry of the run's results that it holds
    .writing-<token>/                          a part that is being written, or was when its process died; each process has a
                                               folder of its own, and takes away those of others: they can finish no part then
    .lock                                      locked while a sink writes here

Fields of one type are typed columns. Messages, calls, rewards, metrics and the task's fields are JSON text:
their shape differs from rollout to rollout (content is text or a list of parts, a task has any fields), and a nested
column has one shape for all.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import msgspec

from gymq.client.sink_loop import Ended, Sink, make_folder, sync_folder
from gymq.errors import DataError, GymqError, SinkBusy, UsageError
from gymq.wire.record import RolloutRecord, narrow
from gymq.wire.rollout import Rollout

#: Rollouts of one part. A reader opens files of a few dozen megabytes well, and thousands of small ones badly.
PART_ROWS = 10_000

#: Bytes of one part's rollouts as JSON, which is what the sink keeps in memory; compressed they are a fraction of that.
PART_BYTES = 64 * 2**20

#: Seconds after which a part is written, however small: so long Redis keeps what was read, and a death makes it come again.
PART_SECONDS = 30.0

#: The share of the run's backlog that one part may hold: the run goes on with the rest while the part grows.
BACKLOG_SHARE = 0.5


#: Bytes of the token that tells a process's unfinished parts from others'.
_TOKEN_SIZE = 6

#: Rows that are read at once.
_READ_ROWS = 500

#: Arrow's types of plain fields.
_ARROW: dict[object, str] = {str: "string", int: "int64", float: "float64"}

#: Integers that are small in every rollout.
_INT32 = frozenset({"sample", "turns", "tool_calls"})

#: The columns that are lists of integers, and those of JSON text.
_LIST, _JSON = "list", "json"


#: A column: its name, Arrow type, field of the record and field within that, if any.
_Column = tuple[str, str, str, str]


def _columns() -> Iterator[_Column]:
    """Derive the columns from the record's struct."""
    for field in msgspec.structs.fields(RolloutRecord):
        kind = field.type
        if isinstance(kind, UnionType):
            (kind,) = [part for part in get_args(kind) if part is not NoneType]
        if kind in _ARROW:
            yield field.name, "int32" if field.name in _INT32 else _ARROW[kind], field.name, ""
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            for inner in msgspec.structs.fields(kind):
                yield f"{field.name}_{inner.name}", _ARROW[inner.type], field.name, inner.name
        else:
            yield field.name, _LIST if get_origin(kind) is tuple else _JSON, field.name, ""


_COLUMNS = list(_columns())
_decoder = msgspec.json.Decoder(
    narrow(
        RolloutRecord,
        *(field for _, kind, field, _ in _COLUMNS if kind != _JSON),
        **{field: msgspec.Raw for _, kind, field, _ in _COLUMNS if kind == _JSON},
    )
)


def _record(columns: list[_Column], row: tuple[Any, ...]) -> bytes:
    """Return a row as the JSON object that it was made of."""
    record: dict[str, Any] = {}
    for (_, kind, field, inner), value in zip(columns, row, strict=True):
        if not inner:
            record[field] = msgspec.Raw(value) if kind == _JSON else value
        elif record.setdefault(field, None) is not None or value is not None:
            record[field] = (record[field] or {}) | {inner: value}
    return msgspec.json.encode(record)


class ParquetSink(Sink):
    """Adds parts to a folder; see `Sink`."""

    name = "parquet"

    def __init__(self, path: Path, run: str) -> None:
        super().__init__(path, run)
        self._fresh: list[Rollout] = []
        self._bytes = 0
        self._lock = -1
        self._unfinished = path / f".writing-{token_hex(_TOKEN_SIZE)}"
        self._arrow: Any = None
        self._parquet: Any = None

    def open(self) -> None:
        """Lock the folder, and read the ids of the rollouts in its parts; see `Sink`."""
        self.claim()
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def begin(self, taken_over: bool) -> None:
        """Take away the unfinished parts of all other processes; see `Sink`."""
        try:
            for other in self.path.glob(".writing-*"):
                # In one step: a process on another host, where the lock does not reach, finishes its part before, or never.
                gone = other.rename(self.path / f".gone-{token_hex(_TOKEN_SIZE)}")
                rmtree(gone, ignore_errors=True)
            self._unfinished.mkdir()
            if taken_over:
                self._read()
            sync_folder(self.path)
        except OSError as error:
            raise GymqError(f"{self.path}: cannot be written: {error.strerror}; choose another --out") from None

    def claim(self) -> None:
        """Make and lock the folder; see `Sink`."""
        self._import()
        if self._lock >= 0:
            return
        try:
            make_folder(self.path)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise GymqError(f"{self.path}: cannot be written: {error.strerror}; choose another --out") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise SinkBusy(f"{self.path}: another process writes this folder; stop it or choose another --out") from None

    def ended(self) -> Iterator[Ended]:
        """Yield what three columns say; see `Sink`."""
        self._import()
        for part in self._parts():
            yield from self._ended(part)

    def records(self, fields: Collection[str] = ()) -> Iterator[bytes]:
        """Yield the rows as JSON objects, made of the columns of the fields; see `Sink`."""
        self._import()
        columns = [column for column in _COLUMNS if not fields or column[2] in fields]
        for part in self._parts():
            with self._opened(part) as file:
                for batch in file.iter_batches(_READ_ROWS, columns=[name for name, *_ in columns]):
                    values = [batch.column(name).to_pylist() for name, *_ in columns]
                    for row in zip(*values, strict=True):
                        yield _record(columns, row)

    def drop(self, unwanted: Callable[[Ended], bool]) -> int:
        """Write each part that has such rollouts anew, which takes the place of the old one by a rename; see `Sink`."""
        gone = 0
        self._unfinished.mkdir(exist_ok=True)
        for part in self._parts():
            keep = [not unwanted(ended) for ended in self._ended(part)]
            if all(keep):
                continue
            gone += keep.count(False)
            try:
                if not any(keep):
                    part.unlink()
                    sync_folder(self.path)
                    continue
                with self._opened(part) as file:
                    self._save(part, file.read().filter(self._arrow.array(keep)))
            except OSError as error:
                raise GymqError(f"{self.path}: {error.strerror}; make room and run the same command again") from None
        return gone

    def discard(self) -> bool:
        """Delete a folder without parts; see `Sink`."""
        if self._parts():
            return False
        (self.path / ".lock").unlink(missing_ok=True)
        for leftover in (*self.path.glob(".writing-*"), *self.path.glob(".gone-*")):
            rmtree(leftover, ignore_errors=True)
        with suppress(OSError):  # it is not there, or holds what is not gymq's
            self.path.rmdir()
        return True

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("*.parquet"))

    def write(self, rollouts: list[Rollout]) -> None:
        """Keep the rollouts for the next part; see `Sink`."""
        self._fresh += rollouts
        self._bytes += sum(len(rollout.json) for rollout in rollouts)

    def due(self, age: float, idle: bool) -> bool:
        """Return whether the part is large or old enough; see `Sink`. Idleness would make many small parts."""
        most = min(PART_ROWS, max(1, int(self.backlog * BACKLOG_SHARE)))
        return len(self._fresh) >= most or self._bytes >= PART_BYTES or age >= PART_SECONDS

    def commit(self) -> None:
        """Write the part: it is there when this returns, and not there, as a part, before."""
        if not self._fresh:
            return
        first, last = (self._fresh[i].entry.decode() for i in (0, -1))
        try:
            self._save(self.path / f"part-{first}_{last}.parquet", self._table())
        except OSError as error:
            raise GymqError(f"{self.path}: {error.strerror}; make room and run the same command again") from None
        self.written += len(self._fresh)
        self._fresh = []
        self._bytes = 0

    def _save(self, part: Path, table: Any) -> None:
        """Write a part: it has its name when it is whole and durable.

        Raises:
            SinkBusy: another process has taken the folder over.
        """
        unfinished = self._unfinished / part.name
        try:
            with unfinished.open("wb") as file:
                self._parquet.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(part)
        except FileNotFoundError:
            raise SinkBusy(f"{self.path}: another process has taken this folder over; stop one of them") from None
        try:
            sync_folder(self.path)
        except OSError:
            part.unlink()  # the next process would take it for durable
            raise

    def close(self) -> None:
        """Unlock the folder."""
        rmtree(self._unfinished, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _import(self) -> None:
        # Parquet is an extra: what needs it not should not load its hundred megabytes.
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UsageError("the parquet sink needs pyarrow: pip install 'gymq[data]'") from None
        self._arrow, self._parquet = pyarrow, pyarrow.parquet

    def _read(self) -> None:
        """Read the ids of the parts' rollouts."""
        for part in self._parts():
            self._read_part(part)

    def _read_part(self, part: Path) -> None:
        with self._opened(part) as file:
            table = file.read(columns=["rollout_id", "seq"])
            ids: list[str] = table.column("rollout_id").to_pylist()
            for number, rollout in zip(table.column("seq").to_pylist(), ids, strict=True):
                if number > self.newest:
                    self.newest, self.newest_id = number, rollout
        try:
            for rollout in ids:
                self.seen.add(rollout)
        except DataError as error:
            raise DataError(f"{part}: {error}; choose another --out") from None

    def _ended(self, part: Path) -> Iterator[Ended]:
        with self._opened(part) as file:
            columns = file.read(columns=list(Ended.__struct_fields__)).to_pydict()
            yield from map(Ended, *(columns[name] for name in Ended.__struct_fields__))

    @contextmanager
    def _opened(self, part: Path) -> Iterator[Any]:
        """Open a part.

        Raises:
            DataError: it is none.
        """
        try:
            with self._parquet.ParquetFile(part) as file:
                yield file
        except (self._arrow.ArrowException, OSError, KeyError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{part}: is no part of gymq's: {reason}; remove it or choose another --out") from None

    def _table(self) -> Any:
        records = [_decoder.decode(rollout.json) for rollout in self._fresh]
        columns: dict[str, Any] = {}
        for name, kind, field, inner in _COLUMNS:
            values = [getattr(record, field) for record in records]
            if inner:
                values = [value and getattr(value, inner) for value in values]
            elif kind == _JSON:
                values = [bytes(value).decode() for value in values]
            columns[name] = self._arrow.array(values, type=self._type(kind))
        return self._arrow.table(columns)

    def _type(self, kind: str) -> Any:
        if kind == _LIST:
            return self._arrow.list_(self._arrow.int64())
        return getattr(self._arrow, "string" if kind == _JSON else kind)()
