"""Tokens and what they cost, from the model's answer to the tables that people read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gymq.ops.summary import read
from gymq.store.runs import RunConfig
from gymq.wire.calls import Usage
from gymq.wire.pricing import Prices
from tests.support.model_server import run_server

GYMQ = str(Path(sys.executable).parent / "gymq")


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a mock model server."""
    yield from run_server()


@pytest.mark.slow
def test_a_run_and_its_status_tell_tokens_and_cost(farm, server, tmp_path):
    # Given a run of a model with a price, on workers that stay
    farm.start("agent")
    farm.start("resource", environments="weather")
    farm.start("model", model="openai:mock-tokens", base_url=f"{server}/v1")
    farm.wait_for(3)
    prices = Prices.read({"models": {"mock-*": {"input": 1000, "cached_input": 100, "output": 2000}}})
    config = RunConfig("paid", "weather", "tool", "openai:mock-tokens", prices=prices)
    farm.produce(config, [{"id": f"w{i}", "prompt": f"What is the weather in city{i}?"} for i in range(5)])
    out = tmp_path / "out.jsonl"
    rollouts = farm.finish("paid", out)
    # When its status is asked for
    tokens = farm.status("paid").tokens["openai:mock-tokens"]
    argv = [GYMQ, "status", "paid"]
    env = {**os.environ, "GYMQ_REDIS_URL": farm.settings.redis_url}
    said = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
    # Then it is what the records add up to
    sums = [sum(r["usage"][name] for r in rollouts) for name in ("input_tokens", "output_tokens", "cached_tokens")]
    assert [tokens.input_tokens, tokens.output_tokens, tokens.cached_tokens] == sums
    assert read(out).tokens == {"openai:mock-tokens": Usage(*sums)}
    cost = ((sums[0] - sums[2]) * 1000 + sums[2] * 100 + sums[1] * 2000) / 1e6
    assert f"{cost:.4f}" in said
    # And prices that are given now count before those of the run
    table = tmp_path / "prices.json"
    table.write_text('{"currency": "EUR", "models": {"*": {"input": 0, "output": 1000000}}}')
    said = subprocess.run([*argv, "--prices", str(table)], env=env, capture_output=True, text=True, check=True).stdout
    assert "EUR" in said
    assert f"{sums[1]}.0000" in said
    told = json.loads(subprocess.run([*argv, "--json"], env=env, capture_output=True, text=True, check=True).stdout)
    assert told["runs"][0]["tokens"]["openai:mock-tokens"]


@pytest.mark.heavy
def test_gymq_run_ends_with_a_table_of_costs(server, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "What is the weather in Rome?"}\n')
    config = tmp_path / "run.yaml"
    config.write_text("prices: {currency: EUR, models: {mock: {input: 0, output: 1000000}}}\n")
    argv = [
        GYMQ,
        "run",
        "weather",
        "--data",
        str(rows),
        "--model",
        "openai:mock",
        "--base-url",
        f"{server}/v1",
        "--config",
        str(config),
    ]
    done = subprocess.run(
        [*argv, "--out", str(tmp_path / "out.jsonl")], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("openai:mock")]
    assert line.split()[-2:] == ["14", "14.0000"]
    # A table that makes no sense is told before anything starts; other prices are the same run.
    config.write_text("prices: {models: {mock: {input: 0}}}\n")
    argv += ["--out", str(tmp_path / "out.jsonl")]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
    assert (refused.returncode, "missing required field output" in refused.stderr) == (2, True)
    again = subprocess.run([*argv[:-4], *argv[-2:]], capture_output=True, text=True, timeout=90, check=False)
    assert (again.returncode, "complete: all 1 rollouts are there" in again.stderr) == (0, True)
    assert "EUR" not in again.stdout
