"""A folder of Parquet files, called parts, each of some thousand finished rollouts.

The parts themselves are the commit record: a part comes into being whole, by a rename, and what it holds is read from its
id column on start. The folder has

    part-<first entry>_<last entry>.parquet    named after the first and last entry of the run's results that it holds
    .part-...                                  a part that is being written, or was when its process died
    .lock                                      locked while a sink writes here

What is the same in every rollout is a typed column. Messages, calls, rewards, metrics and the task's fields are JSON text:
their shape differs from rollout to rollout (content is text or a list of parts, a task has any fields), and a nested
column has one shape for all.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec

from gymq.client.sink_loop import Sink
from gymq.errors import DataError, GymqError, SinkBusy, UsageError
from gymq.wire.rollout import Rollout

#: Rollouts of one part. A reader opens files of a few dozen megabytes well, and thousands of small ones badly.
PART_ROWS = 10_000

#: Bytes of one part's rollouts as JSON, which is what the sink keeps in memory; compressed they are a fraction of that.
PART_BYTES = 64 * 2**20

#: Seconds after which a part is written, however small: so long Redis keeps what was read, and a death makes it come again.
PART_SECONDS = 30.0

#: The share of the run's backlog that one part may hold: the run goes on with the rest while the part grows.
BACKLOG_SHARE = 0.5


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Error(msgspec.Struct):
    kind: str | None = None
    message: str | None = None


class _Record(msgspec.Struct):
    """A finished rollout, as far as its columns need it decoded; see `docs/rollouts.md`."""

    rollout_id: str
    run: str
    environment: str
    agent: str
    model: str
    task_id: str
    group_id: str
    sample: int
    status: str
    stop: str | None
    reward: float | None
    no_reward: str | None
    rewards: msgspec.Raw
    turns: int
    tool_calls: int
    usage: _Usage
    error: _Error | None
    task: msgspec.Raw
    metrics: msgspec.Raw
    started_at: float
    finished_at: float
    model_name: str
    seq: int
    messages: msgspec.Raw
    calls: msgspec.Raw
    versions: tuple[int, int] | None = None


#: The columns of the record's own fields, in order, with the names of their Arrow types.
_PLAIN = {
    **dict.fromkeys(("rollout_id", "run", "environment", "agent", "model", "model_name", "task_id", "group_id"), "string"),
    "sample": "int32",
    "status": "string",
    "stop": "string",
    "reward": "float64",
    "no_reward": "string",
    "turns": "int32",
    "tool_calls": "int32",
    "started_at": "float64",
    "finished_at": "float64",
    "seq": "int64",
}

#: The columns that hold JSON text.
_JSON = ("messages", "calls", "rewards", "metrics", "task")

_decoder = msgspec.json.Decoder(_Record)


class ParquetSink(Sink):
    """Adds parts to a folder; see `Sink`."""

    name = "parquet"

    def __init__(self, path: Path, run: str) -> None:
        super().__init__(path, run)
        self._fresh: list[Rollout] = []
        self._bytes = 0
        self._lock = -1
        self._arrow: Any = None
        self._parquet: Any = None

    def open(self) -> None:
        """Lock the folder, remove what a death left, and read which rollouts the parts hold; see `Sink`."""
        self._import()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise GymqError(f"{self.path}: cannot be written: {error.strerror}; choose another --out") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise SinkBusy(f"{self.path}: another process writes this folder; stop it or choose another --out") from None
        try:
            for leftover in self.path.glob(".part-*"):
                leftover.unlink()
            for part in sorted(self.path.glob("*.parquet")):
                self._read(part)
        except BaseException:
            self.close()
            raise

    def write(self, rollouts: list[Rollout]) -> None:
        """Keep the rollouts for the next part; see `Sink`."""
        self._fresh += rollouts
        self._bytes += sum(len(rollout.json) for rollout in rollouts)

    def due(self, age: float, idle: bool) -> bool:
        """Whether the part is large or old enough; see `Sink`. Idle or not is no matter: it would make many small parts."""
        most = min(PART_ROWS, max(1, int(self.backlog * BACKLOG_SHARE)))
        return len(self._fresh) >= most or self._bytes >= PART_BYTES or age >= PART_SECONDS

    def commit(self) -> None:
        """Write the part: it is there when this returns, and not there, as a part, before."""
        if not self._fresh:
            return
        first, last = (self._fresh[i].entry.decode() for i in (0, -1))
        part = self.path / f"part-{first}_{last}.parquet"
        unfinished = part.with_name("." + part.name)
        try:
            with unfinished.open("wb") as file:
                self._parquet.write_table(self._table(), file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(part)
            folder = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise GymqError(f"{self.path}: {error.strerror}; make room and run the same command again") from None
        self.written += len(self._fresh)
        self._fresh = []
        self._bytes = 0

    def close(self) -> None:
        """Unlock the folder."""
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

    def _read(self, part: Path) -> None:
        """Read whose rollouts a part holds."""
        try:
            with self._parquet.ParquetFile(part) as file:
                table = file.read(columns=["rollout_id", "seq"])
                ids: list[str] = table.column("rollout_id").to_pylist()
                self.newest = max([self.newest, *table.column("seq").to_pylist()])
        except (self._arrow.ArrowException, OSError, KeyError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{part}: is no part of gymq's: {reason}; remove it or choose another --out") from None
        try:
            for rollout in ids:
                self.seen.add(rollout)
        except DataError as error:
            raise DataError(f"{part}: {error}; choose another --out") from None

    def _table(self) -> Any:
        records = [_decoder.decode(rollout.json) for rollout in self._fresh]
        columns: dict[str, Any] = {}
        for name, kind in _PLAIN.items():
            columns[name] = self._column([getattr(record, name) for record in records], kind)
        for name in _Usage.__struct_fields__:
            columns[f"usage_{name}"] = self._column([getattr(record.usage, name) for record in records], "int64")
        for name in _Error.__struct_fields__:
            columns[f"error_{name}"] = self._column(
                [record.error and getattr(record.error, name) for record in records], "string"
            )
        columns["versions"] = self._arrow.array(
            [record.versions for record in records], type=self._arrow.list_(self._arrow.int64())
        )
        for name in _JSON:
            columns[name] = self._column([bytes(getattr(record, name)).decode() for record in records], "string")
        return self._arrow.table(columns)

    def _column(self, values: list[Any], kind: str) -> Any:
        return self._arrow.array(values, type=getattr(self._arrow, kind)())
