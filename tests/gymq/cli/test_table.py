"""Tables on a terminal that is too narrow for them."""

from __future__ import annotations

from rich.console import Console

from gymq.cli.table import make_table


def test_a_name_is_never_folded_for_it_is_copied_into_other_commands():
    table = make_table("run", "state", ">rows", "ended")
    table.add_row("weather-4cbc02209b", "closed", "120", "cancelled 4, completed 44, failed 2")
    console = Console(width=40)
    with console.capture() as shown:
        console.print(table)
    assert "weather-4cbc02209b " in shown.get()
    assert max(map(len, shown.get().splitlines())) <= 40
