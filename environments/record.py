"""Record SmolLM2's answers to the tasks of `demo.jsonl`. Run: make record

The run's file is `out/smollm2.jsonl`: an interrupted run is resumed. Its extract goes to `*/data/smollm2.jsonl`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.vllm.smollm2 import make

ENVIRONMENTS = Path(__file__).parent
TASKS = ENVIRONMENTS / "demo.jsonl"
OUT = ENVIRONMENTS.parent / "out" / "smollm2.jsonl"

#: Fields that `replay` and `branches` read, and each rollout's outcome; none tells of machine or time.
FIELDS = ("task_id", "environment", "model_name", "status", "stop", "reward", "metrics", "turns", "tool_calls", "messages")
CALL_FIELDS = ("call", "kind", "finish", "input_tokens", "output_tokens", "message", "tokens")

#: float32, for logprobs that another implementation reproduces.
OPTIONS = (
    *("--gpu", "none", "--tool-parser", "hermes", "--engine", "dtype=float32"),
    *("--engine", "max_model_len=4096", "--engine", "max_num_seqs=64"),
    *("--temperature", "0.6", "--max-tokens", "256"),
)


def run() -> None:
    """Roll out the tasks."""
    folder = make()
    # Run in the model's parent folder: a recording names its model without the path.
    command = [sys.executable, "-m", "gymq.cli", "run", "weather", "--data", str(TASKS), "--model", f"vllm:{folder.name}"]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    subprocess.run([*command, *OPTIONS, "--out", str(OUT)], cwd=folder.parent, env=environment, check=True)


def kept(rollout: dict[str, Any]) -> dict[str, Any]:
    """Return the extract of a rollout.

    Args:
        rollout: its record.
    """
    calls = [
        {name: call[name] for name in CALL_FIELDS if name in call} for call in rollout["calls"] if call["kind"] == "generate"
    ]
    return {**{name: rollout[name] for name in FIELDS}, "calls": calls}


def main() -> None:
    """Roll out, and write each environment's file in the order of the tasks."""
    run()
    order = [json.loads(line)["id"] for line in TASKS.read_text("utf-8").splitlines()]
    rollouts = [kept(json.loads(line)) for line in OUT.read_text("utf-8").splitlines()]
    rollouts.sort(key=lambda rollout: order.index(rollout["task_id"]))
    for name in sorted({rollout["environment"] for rollout in rollouts}):
        with (ENVIRONMENTS / name / "data" / "smollm2.jsonl").open("w", encoding="utf-8") as out:
            for rollout in rollouts:
                if rollout["environment"] == name:
                    out.write(json.dumps(rollout, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
