"""Tables on a terminal that is too narrow for them."""

from __future__ import annotations

from rich.console import Console

from gymq.cli.table import make_table, show


def test_a_name_is_never_folded_for_it_is_copied_into_other_commands():
    table = make_table("run", "state", ">rows", "ended")
    table.add_row("weather-4cbc02209b", "closed", "120", "cancelled 4, completed 44, failed 2")
    console = Console(width=40)
    with console.capture() as shown:
        console.print(table)
    assert "weather-4cbc02209b " in shown.get()
    assert max(map(len, shown.get().splitlines())) <= 40


def test_a_terminal_wraps_lines_between_words_but_for_those_with_a_command(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "20")
    show("a policy in code played the model", "run `gymq control resume weather`")
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "a policy in code",
        "played the model",
        "run `gymq control resume weather`",
    ]
