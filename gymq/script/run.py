"""`gymq.run`: the whole of `gymq run` in a call, from a script or a notebook.

It takes the path of every run: a server, workers, a sink, and messages between them. A class is served here, in a thread of
the program, whether it stands in a notebook's cell or in a file: a file that is run again in a worker would
begin the script again. A name or `FILE.py:CLASS` is served by a worker process.

The run lives in a thread of its own, so that it does not matter whether a loop is running, and that the caller's thread is
free for Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import msgspec

from gymq import environment_file, plugins
from gymq.api.environment import Environment
from gymq.errors import DataError, GymqError, UsageError
from gymq.local.local_run import LocalRun
from gymq.local.read_options import check_options
from gymq.local.run_guard import HOPELESS
from gymq.observe.terminal import say
from gymq.script.run_keywords import RunKeywords
from gymq.script.run_result import RunResult
from gymq.script.wording import in_python
from gymq.wire.json_types import JsonObject

#: Where tasks come from: a source as of `--data`, or rows.
Tasks = str | Path | Iterable[JsonObject]

#: Seconds between two looks of `run_async`: Jupyter's stop button cancels a cell, but does not wake a loop that sleeps.
POLL_INTERVAL = 0.1

#: The name under which errors speak of rows that are not in a file.
_ROWS = "tasks"


def run(
    environment: type[Environment] | str,
    tasks: Tasks,
    *,
    model: str,
    out: str | Path | None = None,
    **options: Unpack[RunKeywords],
) -> RunResult:
    """Roll out tasks on this machine and return the finished rollouts; nothing needs to be started before.

    Ctrl-C stops the run in order, and what has ended is returned; a second one ends it at once, as `KeyboardInterrupt`. With
    `out` the same call continues where the run was stopped or died.

    Args:
        environment: a class, the name of an installed environment, or a class in a file, `"dice.py:Dice"`.
        tasks: rows as dicts, or a source as of `gymq run --data`: a file, a saved data set, `"PRODUCER:SOURCE"`.
        model: the model's SPEC, such as `"openai:qwen"` or `"scripted"`.
        out: the file of finished rollouts; None: a temporary one, which lasts as long as the result.
        options: the options of `gymq run` by name, with their defaults: `samples`, `base_url`, `concurrency` and more.

    Raises:
        UsageError: an argument makes no sense, or `out` is another run's.
        DataError: the tasks cannot be read, or none is good.
        GymqError: the run cannot go on.
    """
    running = _Running(environment, tasks, model, out, options)
    try:
        return running.future.result()
    except KeyboardInterrupt:
        running.stop()
    except BaseException:
        running.end()
        raise
    try:
        return running.future.result()
    except BaseException:
        running.end()
        raise


async def run_async(
    environment: type[Environment] | str,
    tasks: Tasks,
    *,
    model: str,
    out: str | Path | None = None,
    **options: Unpack[RunKeywords],
) -> RunResult:
    """Roll out tasks like `run`, while the caller's loop goes on; a cancellation stops the run in order.

    Args:
        environment, tasks, model, out, options: as of `run`.

    Raises:
        UsageError, DataError, GymqError: as `run`.
    """
    running = _Running(environment, tasks, model, out, options)
    future = asyncio.wrap_future(running.future)
    try:
        while not future.done():
            await asyncio.wait([future], timeout=POLL_INTERVAL)
        return future.result()
    except asyncio.CancelledError:
        running.stop()
        with suppress(Exception):
            await future
        raise


class _Running:
    """A run in a thread of its own.

    Args:
        environment, tasks, model, out, options: as of `run`.
    """

    def __init__(
        self, environment: type[Environment] | str, tasks: Tasks, model: str, out: str | Path | None, options: RunKeywords
    ) -> None:
        if file := environment_file.loading():
            raise UsageError(
                f"gymq.run was called while {file} is loaded for its environment, and would call itself without end; put "
                'the call below: if __name__ == "__main__":'
            )
        self.future: Future[RunResult] = Future()
        self._local: LocalRun | None = None
        self._stopping = False
        self._given = (environment, tasks, model, out, options)
        self._thread = threading.Thread(target=self._live, name="gymq-run", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the run in order."""
        self._stopping = True
        if self._local is not None:
            self._local.stop(signal.SIGINT)

    def end(self) -> None:
        """End the run at once, and wait for it."""
        self.stop()
        if self._local is not None:
            self._local.kill()
        self._thread.join()

    def _live(self) -> None:
        try:
            result = self._run(*self._given)
        except BaseException as error:
            if isinstance(error, GymqError):
                error.args = tuple(in_python(part) if isinstance(part, str) else part for part in error.args)
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def _run(
        self, environment: type[Environment] | str, tasks: Tasks, model: str, out: str | Path | None, options: RunKeywords
    ) -> RunResult:
        folder = TemporaryDirectory(prefix="gymq-", ignore_cleanup_errors=True)
        rows = Path(folder.name, f"{_ROWS}.jsonl")
        data = os.fspath(tasks) if isinstance(tasks, str | Path) else _write(tasks, rows)
        target = os.fspath(out) if out is not None else os.path.join(folder.name, "rollouts.jsonl")
        values: dict[str, Any] = {**options, "data": data, "model": model, "out": target}
        checked = check_options(values, lambda name: f"gymq.run: {name}")

        def tell(line: str) -> None:
            line = in_python(line).replace(str(rows), _ROWS)
            say(line if out is not None else line.replace(target, "the result"), err=True)

        try:
            local = self._local = LocalRun(plugins.add_environment(environment), checked, tell, in_python)
        except DataError as error:
            raise DataError(str(error).replace(str(rows), _ROWS)) from None
        if self._stopping:
            local.stop(signal.SIGINT)
        stop = local.go()
        if stop is not None and stop.code == HOPELESS:
            again = "" if out is None else "; once that is mended, the same call with retry_failed=True does them all"
            raise GymqError(f"stopped, because all rollouts fail alike: {local.folder.last_failure()}{again}")
        if stop is not None and out is not None:
            tell(local.told(stop)[0])
        if stop is None:
            for line in local.complaints():
                tell(f"gymq: {line}")
        return RunResult(Path(target), local.total, local.bad, stop is not None, folder if out is None else None)


def _write(tasks: Iterable[JsonObject], path: Path) -> str:
    """Write rows into a file, and return its name as a source.

    Raises:
        DataError: a row is no dict, or has no JSON form.
    """
    encode: Callable[[object], bytes] = msgspec.json.Encoder().encode
    with path.open("wb") as file:
        for number, row in enumerate(tasks, 1):
            if not isinstance(row, dict):
                raise DataError(f"{_ROWS}:{number}: is a {type(row).__name__}; give dicts, such as {{'prompt': '...'}}")
            try:
                file.write(encode(row) + b"\n")
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise DataError(f"{_ROWS}:{number}: cannot be written as JSON ({error}); use plain values only") from None
    return str(path)
