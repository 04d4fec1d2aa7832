"""Runs of `gymq run`, and what they leave."""

from __future__ import annotations

import itertools

from tests.support.cli import data


def expected(rows: int, samples: int = 1) -> list[tuple[int, int]]:
    return list(itertools.product(range(rows), range(samples)))


def slow_run(slow_model: str, *more: object) -> tuple[object, ...]:
    """A run of 120 rollouts that takes some five seconds."""
    model = ("--model", "openai:mock", "--base-url", slow_model, "--concurrency", "20", "--samples", "2")
    limit = () if "--limit" in more else ("--limit", 60)
    return ("run", "weather", "--data", data("weather"), *model, *limit, "--out", "out.jsonl", *more)


def left_beside(cli) -> list[str]:
    """What a finished run leaves beside its file."""
    return [entry.name for entry in (cli.folder / "out.jsonl.gymq").iterdir()]
