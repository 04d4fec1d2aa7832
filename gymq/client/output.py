"""The output of a run on this machine: a file of JSON lines, or a folder of Parquet parts if its name ends in .parquet."""

from __future__ import annotations

from pathlib import Path

from gymq import plugins
from gymq.client.sink_loop import Sink


def output_kind(out: Path) -> str:
    """Return the name of the sink that writes an output."""
    return "parquet" if out.suffix == ".parquet" else "jsonl"


def output_sink(out: Path, run: str = "") -> Sink:
    """Return the sink of an output, not opened.

    Args:
        out: the output.
        run: the run whose rollouts it writes; empty: it only reads.
    """
    made: Sink = plugins.load(plugins.SINKS, output_kind(out))(out, run)
    return made
