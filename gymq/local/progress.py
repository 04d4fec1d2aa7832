"""The progress of a run: a bar on a terminal, one line in a notebook, else a line at intervals; with what the run waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from gymq.observe.terminal import printable, say
from gymq.store.run_status import RunStatus

#: Seconds between two lines where there is no terminal.
LINE_INTERVAL = 10.0

#: Seconds over which the rate is taken: short enough to show a change, long enough not to dance.
WINDOW = 5.0


class _Bar(Progress):
    """A bar with a line below it, which is cut at the terminal's edge."""

    waits = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bar, and the line if there is something to say."""
        yield from super().get_renderables()
        if self.waits:
            yield Text(printable(f"waits for {self.waits}"), style="dim", overflow="ellipsis", no_wrap=True)


class RunProgress:
    """The progress of one run.

    Args:
        name: the run's name.
        total: rollouts that the run will have.
        done: rollouts that had ended when the command began.
        word: returns a line in the words of the caller.
    """

    def __init__(self, name: str, total: int, done: int, word: Callable[[str], str] = str) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._name = name
        self._word = word
        self._total = total
        self._spoken = time.monotonic()
        self._seen = [(time.monotonic(), done)]
        self._bar: _Bar | None = None
        #: In a notebook: the output of the cell that is written anew each time.
        self._cell: Any = None
        if self.console.is_jupyter:
            from IPython.display import display

            self._cell = display({"text/plain": f"run {name}"}, raw=True, display_id=True)
        elif self.console.is_terminal:
            # Without the run's name: only the bar may become narrow, and 80 characters are soon full.
            columns = (BarColumn(), MofNCompleteColumn())
            self._bar = _Bar(
                *columns, TimeElapsedColumn(), TextColumn("{task.fields[more]}"), console=self.console, auto_refresh=False
            )
            self._task = self._bar.add_task(name, total=total, completed=done, more="")

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self.say(f"run {self._name}")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.waits = ""
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        line = self._word(line)
        if self._cell is not None:
            say(line, err=True)  # the console would display it as HTML
        else:
            self.console.print(printable(line), markup=False, soft_wrap=True)

    def show(self, status: RunStatus, last: bool = False, waits: str = "") -> None:
        """Show the run's status.

        Args:
            status: the run's status.
            last: whether the run is over: then a line is due at once.
            waits: what the run waits for, in words; empty: not known.
        """
        now = time.monotonic()
        self._total = max(self._total, status.total)
        self._seen = [(at, ended) for at, ended in self._seen if at > now - WINDOW] or self._seen[-1:]
        self._seen.append((now, status.ended))
        (then, before), passed = self._seen[0], now - self._seen[0][0]
        rate = max(status.ended - before, 0) / passed if passed > 0 and then < now else 0.0
        failed = status.by_status.get("failed", 0)
        more = f"{rate:.1f}/s, rows {status.rows}, in flight {status.live}" + (f", failed {failed}" if failed else "")
        if self._bar is not None:
            self._bar.waits = "" if last else waits
            self._bar.update(self._task, total=self._total, completed=status.ended, more=more)
            self._bar.refresh()
            return
        more += f"; waits for {waits}" if waits and not last else ""
        line = f"{self._name}: {status.ended}/{self._total} rollouts, {more}"
        if self._cell is not None:
            self._cell.update({"text/plain": printable(line)}, raw=True)
        elif now - self._spoken >= LINE_INTERVAL or last:
            self._spoken = now
            self.say(line)
