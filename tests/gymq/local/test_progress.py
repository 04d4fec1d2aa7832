"""The progress of a run: on a terminal of 80 and of 200 columns, and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from gymq.local import progress
from gymq.local.progress import RunProgress
from gymq.store.run_status import RunStatus
from gymq.store.runs import RunConfig

WORK = "model:openai:qwen: 256 calls in work, the oldest for 0:42, none answered in the last minute"
WAITS = f"{WORK} (100% of the last minute's time)"
STATUS = RunStatus(RunConfig("dice-1", "dice", "tool", "openai:qwen"), "closed", 300, 256, 0, 256, {}, {})


def written(monkeypatch: pytest.MonkeyPatch, width: int | None) -> str:
    """What a progress writes that is shown twice, on a terminal of a width, or in a pipe."""
    out = io.StringIO()
    terminal = {"file": out, "force_terminal": width is not None, "highlight": False, "width": width or 80}
    monkeypatch.setattr(progress, "Console", lambda **_: Console(**terminal, _environ={"TERM": "xterm"}))
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    with RunProgress("dice-1", 300, 0) as shown:
        shown.show(STATUS, waits=WAITS)
        shown.show(STATUS, last=True, waits=WAITS)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_shows_what_the_run_waits_for_in_one_line_below_the_bar(monkeypatch, width):
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written(monkeypatch, width)))
    shown = [line for line in lines if line.startswith("waits for model:openai:qwen: 256 calls in work")]
    assert shown
    assert all(len(line) <= width for line in lines)
    assert shown[0].rstrip().endswith("…" if width == 80 else "(100% of the last minute's time)")
    assert any("0/300" in line for line in lines)


def test_a_pipe_gets_whole_lines_without_control_characters(monkeypatch):
    assert written(monkeypatch, None).split("\n") == [
        f"dice-1: 0/300 rollouts, 0.0/s, rows 300, in flight 256; waits for {WAITS}",
        "dice-1: 0/300 rollouts, 0.0/s, rows 300, in flight 256",
        "",
    ]
