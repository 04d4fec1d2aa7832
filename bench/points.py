"""What makes the bench's own environments, agent and backend known to workers: a distribution that nobody installs."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_ENTRY_POINTS = """\
[gymq.environments]
bench_turns = bench.environment:Turns
bench_slow = bench.environment:Slow
bench_spin = bench.environment:Spin
bench_talk = bench.environment:Talk

[gymq.agents]
bench_talker = bench.agent:Talker

[gymq.backends]
bench_vllm = bench.backend:Timed
"""
_METADATA = "Metadata-Version: 2.1\nName: gymq-bench\nVersion: 0\n"


def path(folder: Path) -> str:
    """Write it; returns the PYTHONPATH with which workers find it.

    Args:
        folder: where it is written.
    """
    points = folder / "points" / "gymq_bench-0.dist-info"
    points.mkdir(parents=True)
    (points / "METADATA").write_text(_METADATA)
    (points / "entry_points.txt").write_text(_ENTRY_POINTS)
    return os.pathsep.join([str(ROOT), str(points.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
