"""Whole rollouts with the real engine in a real worker, whose processes die."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from gymq.wire.token_branches import branches
from tests.support.waiting import wait_until
from tests.vllm.asking import floats, ints

GYMQ = str(Path(sys.executable).parent / "gymq")

#: Seconds that a worker may take to load the model on a busy machine, and a run to end.
LIMIT = 200

#: A random model never ends by itself: a grammar makes it say a number and stop.
CONFIG = "sampling: {structured_outputs: {regex: '[0-9]{1,3}'}, temperature: 1.0}\n"


def engines(of: int) -> list[psutil.Process]:
    """The engine's processes below a process."""
    return [one for one in psutil.Process(of).children(recursive=True) if "EngineCore" in " ".join(one.cmdline())]


def rows(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )


def begin(spawn: Any, tiny: Path, folder: Path, *options: object) -> tuple[Any, Path]:
    """A run of 60 tasks; returns its process and its file."""
    (folder / "run.yaml").write_text(CONFIG)
    data = Path(__file__).parents[2] / "environments" / "guess_number" / "data" / "train.jsonl"
    out = folder / "out.jsonl"
    argv = [GYMQ, "run", "guess_number", "--data", data, "--limit", "60", "--max-turns", "6"]
    argv += ["--model", f"vllm:{tiny}", "--gpu", "none", "--engine", "dtype=float32", "--config", folder / "run.yaml"]
    with (folder / "log").open("wb") as log:
        return spawn([*map(str, argv), *map(str, options), "--out", str(out)], stdout=log, stderr=subprocess.STDOUT), out


def generated(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens of a rollout's answers."""
    return [call["tokens"] for call in row["calls"] if call["kind"] == "generate" and call.get("tokens")]


@pytest.mark.heavy
def test_an_engine_that_dies_takes_no_rollout_with_it(spawn: Any, tiny: Path, tmp_path: Path) -> None:
    run, out = begin(spawn, tiny, tmp_path, "--concurrency", 16, "--samples", 4)
    wait_until(lambda: len(rows(out)) >= 16 or run.poll() is not None, LIMIT)
    assert run.poll() is None, (tmp_path / "log").read_text()
    engines(run.pid)[0].kill()
    assert run.wait(LIMIT) == 0, (tmp_path / "log").read_text()
    told = (tmp_path / "log").read_text()
    assert "model: exit code 1" in told
    assert "model: started again" in told
    assert "vLLM's engine died" in (tmp_path / "out.jsonl.gymq" / "logs" / "model.log").read_text()
    found = rows(out)
    assert len({row["rollout_id"] for row in found}) == len(found) == 240
    assert {row["status"] for row in found} <= {"completed", "truncated"}
    again = 0
    for row in found:
        again += any(call.get("fault") for call in row["calls"])
        packed = generated(row)
        assert len(packed) == row["turns"]
        ends = []
        for one in packed:
            prompt, output, logprobs = (base64.b64decode(one[name]) for name in ("prompt", "output", "logprobs"))
            assert len(ints(output)) == len(floats(logprobs)) > 0
            assert one["versions"] == [[0, 0]]
            ends.append((one["prompt_start"], one["prompt_start"] + len(ints(prompt)) + len(ints(output))))
        # What was sampled, also before the engine died, stands in the next prompt as it was sampled.
        assert all(start == end for (_, end), (start, _) in pairwise(ends))
    assert again > 0


def test_weights_that_are_published_in_a_run_reach_its_conversations(
    spawn: Any, tiny: Path, tiny2: Path, tmp_path: Path
) -> None:
    run, out = begin(spawn, tiny, tmp_path, "--concurrency", 64, "--samples", 20)
    wait_until(lambda: len(rows(out)) >= 16 or run.poll() is not None, LIMIT)
    argv = [GYMQ, "weights", "publish", "--model", f"vllm:{tiny}", "--version", "3", "--path", str(tiny2)]
    told = subprocess.run([*argv, "--of", str(out)], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert told.returncode == 0, told.stderr
    assert run.wait(LIMIT) == 0, (tmp_path / "log").read_text()
    found = rows(out)
    assert len({row["rollout_id"] for row in found}) == len(found) == 1200
    assert {row["status"] for row in found} <= {"completed", "truncated"}
    seen = [[version for one in generated(row) for _, version in one["versions"]] for row in found]
    assert all(versions == sorted(versions) for versions in seen)
    assert {0, 3} == {version for versions in seen for version in versions}
    assert any(len(set(versions)) == 2 for versions in seen)


@pytest.mark.heavy
def test_rows_with_images_become_branches_that_hold_them(spawn: Any, vision: Path, tmp_path: Path) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    urls = [*[f"data:image/png;base64,{pixel}"] * 5, "https://example.com/cat.png"]
    game = {"secret": 3, "low": 0, "high": 999, "max_guesses": 4}
    parts = [[{"type": "text", "text": "Guess."}, {"type": "image_url", "image_url": {"url": url}}] for url in urls]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": [{"role": "user", "content": each}]} | game) + "\n" for each in parts))
    (tmp_path / "run.yaml").write_text(CONFIG)
    argv = [GYMQ, "run", "guess_number", "--data", data, "--model", f"vllm:{vision}", "--gpu", "none", "--samples", "4"]
    argv += ["--engine", "dtype=float32", "--config", tmp_path / "run.yaml", "--out", tmp_path / "out.jsonl"]
    with (tmp_path / "log").open("wb") as log:
        run = spawn([*map(str, argv)], stdout=log, stderr=subprocess.STDOUT)
    run.wait(LIMIT)
    found = rows(tmp_path / "out.jsonl")
    assert len(found) == 24, (tmp_path / "log").read_text()
    failed = [row for row in found if row["status"] == "failed"]
    assert [row["error"]["kind"] for row in failed] == ["model"] * 4
    assert all("messages[0]: an image is at 'https://example.com/cat.png'" in row["error"]["message"] for row in failed)
    for row in found:
        if row not in failed:
            (branch,) = branches(row)
            assert len(branch.answers) == row["turns"]
            first, *later = generated(row)
            ((start, end, _),) = first["images"]
            assert 0 < start < end < branch.prompt_len
            assert not any("images" in one for one in later)


@pytest.mark.heavy
def test_an_engine_ends_with_a_worker_that_was_killed(spawn: Any, redis_url: str, tiny: Path, tmp_path: Path) -> None:
    argv = [GYMQ, "worker", "model", "--model", f"vllm:{tiny}", "--gpu", "none", "--redis", redis_url]
    with (tmp_path / "log").open("wb") as log:
        worker = spawn(argv, stdout=log, stderr=subprocess.STDOUT)
        wait_until(lambda: "reasoning parser" in (tmp_path / "log").read_text() or worker.poll() is not None, LIMIT)
        below = psutil.Process(worker.pid).children(recursive=True)
        assert engines(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in below), 30)
