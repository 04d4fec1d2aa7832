"""Tables on stdout."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table

from gymq.observe.terminal import printable

#: Characters of a line where no terminal sets the width: cells that are wrapped cannot be searched.
WIDE = 1000


class Cells(Table):
    """A table of texts."""

    def add_row(self, *texts: str) -> None:  # type: ignore[override]  # other things than text are not shown
        """Add a row.

        Args:
            texts: its cells; characters in them that act on a terminal do not.
        """
        super().add_row(*map(printable, texts))


def make_table(*columns: str) -> Cells:
    """Return an empty table.

    Args:
        columns: their names; one that begins with `>` is aligned to the right.
    """
    table = Cells(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, column in enumerate(columns):
        # The first has names, which are copied into other commands: a narrow terminal folds the other columns.
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        table.add_column(printable(column.lstrip(">")), justify=justify, overflow="fold", no_wrap=place == 0)
    return table


def show(*things: Table | str) -> None:
    """Print tables and lines; nothing in them is markup, and a terminal wraps lines between words.

    Elsewhere lines are not wrapped, so that they can be searched, and nowhere those that hold a command, which is copied.

    Args:
        things: what to print.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    for thing in things:
        if isinstance(thing, str):
            console.print(printable(thing), soft_wrap=not console.is_terminal or "`" in thing)
        else:
            console.print(thing)
